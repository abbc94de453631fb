"""`aepo status`: where each run stands, from its marks, progress files, manifest, executed notebooks and returns.csv."""

from __future__ import annotations

import contextlib
import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo import files, settings
from aepo.batch import mean_scores
from aepo.methods import METHODS
from aepo.study import runs
from aepo.verify import task_of
from aepo.watch import DID_NOT_END, Part, bars, parameters, stage_line


@dataclass(frozen=True)
class Status:
    """A run: `state` finished, running, failed, stopped or evaluated (without notebooks); `now`: the stages at work."""

    name: str
    profile: str
    state: str
    done: int
    total: int
    now: tuple[str, ...]
    seconds: float
    scores: dict[str, float]
    failures: tuple[str, ...]

    def __str__(self) -> str:
        """The row of a table, and under it a line for each stage at work."""
        scores = ", ".join(f"{method} {value:.1f}" for method, value in self.scores.items()) or "-"
        notebooks = f"{self.done}/{self.total}"
        row = f"{self.name:<32} {self.state:<9} {notebooks:<10} {self.seconds:>8.0f}  {scores}"
        return "\n    ".join([row, *self.now])


HEADER = f"{'task':<32} {'state':<9} {'notebooks':<10} {'seconds':>8}  score so far (return where there is none)"


def of_runs(root: Path, profile: str = "") -> dict[str, list[Status]]:
    """Every run below the folder of all runs, by profile; of one profile where it is named."""
    found: dict[str, list[Status]] = {}
    for folder in sorted({path.parent for name in ("manifest.json", "*.ipynb") for path in root.glob(f"*/*/{name}")}):
        with contextlib.suppress(ValueError):  # a folder that is no profile's, such as runs/example
            settings.get(folder.parent.name)
            if folder.name not in ("theory", "study") and profile in ("", folder.parent.name):
                found.setdefault(folder.parent.name, []).append(of_run(folder))
    return found


def of_run(folder: Path) -> Status:
    """Where the run of a folder stands."""
    part = Part(folder, _notebooks(folder))
    done = part.marks()
    at_work = [stage_line(*bar) for bar in bars(folder)]
    running = bool(at_work) or _locked(folder.parent / ".locks" / f"reproduce-{folder.name}")
    failures = part.failures()
    if running:
        at_work = at_work or [text.split(maxsplit=1)[0] for text in failures if DID_NOT_END in text]
        failures = [text for text in failures if DID_NOT_END not in text]
    finished = len(done) == len(part.made) and bool(done)
    scores = mean_scores(folder / "returns.csv")
    without = "evaluated" if scores and not done else "stopped"  # by `aepo evaluate`, which runs no notebook
    state = "finished" if finished else "running" if running else "failed" if failures else without
    return Status(
        folder.name,
        folder.parent.name,
        state,
        len(done),
        len(part.made),
        tuple(at_work),
        _seconds(_manifest(folder)),
        scores,
        tuple(failures),
    )


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return runs.read_manifest(folder)
    except files.StudyError:
        return {}


def _notebooks(folder: Path) -> dict[str, list[Path]]:
    """What the run's notebooks leave, for the methods that its executed notebooks were given."""
    methods: dict[str, None] = {}
    for path in sorted(folder.glob("*.ipynb")):
        methods |= dict.fromkeys(m for m in parameters(path).get("methods", []) if m in METHODS)
    task = task_of(folder)
    profile = settings.for_task(folder.parent.name, task.settings if task else {})
    return runs.products(folder, folder, list(methods), profile, task is None or task.env_id is not None)


def _locked(path: Path) -> bool:
    """Whether a process holds a lock of `files.lock`."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _seconds(manifest: dict[str, Any]) -> float:
    """Seconds of the stages and evaluations that the manifest tells of."""
    entries = [entry for section in ("stages", "evaluation") for entry in manifest.get(section, {}).values()]
    return sum(entry.get("seconds", 0.0) for entry in entries)
