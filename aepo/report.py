"""`aepo report`: Snakemake's report of a profile, one HTML file that needs nothing beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from aepo import files
from aepo.status import Status, of_runs
from aepo.study import runs
from aepo.verify import task_of
from aepo.watch import short


def write(runs_dir: Path, profile: str, target: Path) -> tuple[list[str], list[str]]:
    """Write the report of a profile's runs that have results; returns the tasks in it and those that lack them."""
    root, every = files.project_root(), of_runs(runs_dir, profile).get(profile, [])
    found = [run for run in every if (_folder(runs_dir, run) / ".done" / "08_results").exists()]
    if not found:
        raise files.StudyError(f"no run below {runs_dir / profile} has results yet: run `make reproduce` first")
    manifests = [runs.read_manifest(_folder(runs_dir, run)) for run in found]
    methods = dict.fromkeys(method for manifest in manifests for method in manifest["evaluation"])
    values = {
        "task": ",".join(task_of(_folder(runs_dir, run)).argument for run in found),
        "profile": profile,
        "methods": ",".join(methods),
        "device": "cpu",
        "runs_dir": runs_dir,
        "partial": 1,
        "read_only": 1,
    }
    common = ["gallery", "--snakefile", root / "Snakefile", "--directory", runs_dir / profile / ".snakemake-work"]
    common += ["--workflow-profile", root / "profiles" / "default", "--cores", "1", "--nolock"]
    config = ["--config", *(f"{key}={value}" for key, value in values.items())]
    _snakemake(root, [*common, "--allowed-rules", "gallery", "figures_of_task", *config])
    target.parent.mkdir(parents=True, exist_ok=True)
    _snakemake(root, [*common, "--report", target.resolve(), *config])
    names = [run.name for run in found]
    return names, [run.name for run in every if run.name not in names]


def _folder(runs_dir: Path, run: Status) -> Path:
    return runs_dir / run.profile / run.name


def _snakemake(root: Path, options: list) -> None:
    command = [sys.executable, "-m", "snakemake", *map(str, options)]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        last = [line for line in done.stdout.splitlines() if line.strip()][-3:]
        raise files.StudyError(f"Snakemake could not write the report: {short(root / 'Snakefile')}: {' '.join(last)}")
