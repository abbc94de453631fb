"""What numbers were made with: versions, and the commit of the project."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "numpy", "gymnasium", "gymnasium-robotics", "mujoco", "minari", "safetensors")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


@functools.cache
def git_commit(root: Path) -> str | None:
    """Commit of the project that runs, with `+` where files differ from it; None outside a checkout."""
    call = functools.partial(subprocess.run, capture_output=True, text=True, cwd=root)
    try:
        head = call(["git", "rev-parse", "--short=12", "HEAD"])
        dirty = call(["git", "status", "--porcelain", "--untracked-files=no"])
    except OSError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None
