"""AEPO study: analytic energy-guided policy optimization (arXiv 2505.01822), checked against exact answers."""

import farama_notifications

from aepo.core import guidance, posterior, sampler, schedule

# Importing gymnasium prints a note on Adroit rewards each time; the tasks it concerns carry it as their `note`.
farama_notifications.notifications.get("gymnasium_robotics", {}).clear()

__version__ = "0.1.0"
__all__ = ["Policy", "guidance", "posterior", "sampler", "schedule"]


def __getattr__(name: str):
    if name == "Policy":
        from aepo.study.policy import Policy

        return Policy
    raise AttributeError(f"module 'aepo' has no attribute {name!r}")
