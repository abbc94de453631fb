"""AEPO study: analytic energy-guided policy optimization (arXiv 2505.01822), checked against exact answers."""

import farama_notifications

# Importing gymnasium prints a note on Adroit rewards each time; the tasks it concerns carry it as their `note`.
farama_notifications.notifications.get("gymnasium_robotics", {}).clear()

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "Policy":
        from aepo.policy import Policy

        return Policy
    raise AttributeError(f"module 'aepo' has no attribute {name!r}")
