"""Where notebooks run: on this machine, or on a cluster through a Snakemake profile; Slurm's jobs of an earlier call."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from aepo import files, settings
from aepo.files import StudyError


@dataclass(frozen=True)
class Place:
    """Where notebooks run: here, `cores` of them at a time in `memory` MB, or on a cluster, a folder like profiles/slurm.

    `device`: what they are asked to use; `auto` is decided where they run.
    """

    cores: int
    memory: int
    device: str
    cluster: Path | None = None

    def slurm_prefix(self, workdir: Path, names: Sequence[str]) -> str:
        """What the names of these tasks' jobs begin with in Slurm's queue; empty where they are not run by Slurm."""
        if self.cluster is None:
            return ""
        profile = yaml.safe_load((self.cluster / "config.yaml").read_text())
        return f"aepo-{settings.digest([str(workdir), *names])[:8]}" if profile.get("executor") == "slurm" else ""


def profile_folder(name: str) -> Path | None:
    """The folder of a cluster: profiles/<name>, or a path; None for no name, StudyError where there is no such folder."""
    if not name:
        return None
    for folder in (Path(name), files.project_root() / "profiles" / name):
        if (folder / "config.yaml").is_file():
            return folder.resolve()
    raise StudyError(f"there is no cluster profile {name!r}: profiles/{name}/config.yaml would be one")


def cancel(prefix: str) -> None:
    """Cancel the jobs in Slurm's queue whose names begin with `prefix`; nothing for an empty one."""
    if not prefix:
        return
    try:
        listing = ["squeue", "--me", "--noheader", "--format=%A %j"]
        queue = subprocess.run(listing, capture_output=True, text=True, timeout=60)
        lines = [line.strip().partition(" ") for line in queue.stdout.splitlines()]
        jobs = [number for number, _, name in lines if name.startswith(prefix)]
        if jobs:
            subprocess.run(["scancel", *jobs], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StudyError(f"Slurm does not answer ({error}): is this a login node of the cluster?") from None


def machine_memory() -> int:
    """MB of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
