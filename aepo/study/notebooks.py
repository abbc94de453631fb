"""What each notebook needs before it runs and while it runs, and the marks of those that ran to their end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from aepo import methods, settings
from aepo.data.tasks import Task


@dataclass(frozen=True)
class Notebook:
    """How a notebook is run: those that must have ended before, MB of memory, the methods that it is given.

    `gives`: "none" (it runs alike for all methods), "all" of the run's, "own" (one run a method, `<notebook>-<method>`),
    "guided" (those with a network of the energy). `gpu`: whether it uses one where there is one.
    """

    needs: tuple[str, ...] = ()
    gives: str = "none"
    memory: int = 3000
    gpu: bool = True


TABLE = yaml.safe_load(Path(__file__).with_name("notebooks.yaml").read_text())
NOTEBOOKS = {name: Notebook(**row) for name, row in TABLE.items()}
THEORY, PERFORMANCE = ("01_closed_form_guidance", "02_exact_toys"), ("10_performance",)  # they need no task
TRAINING = tuple(name for name in NOTEBOOKS if "03" <= name[:2] < "07")
STUDY = (*TRAINING, "09_guidance_on_real_tasks", "07_evaluation", "08_results")


def entry(name: str) -> Notebook:
    """The entry of NOTEBOOKS of a notebook, or of one that is run for a method: 06_energy of 06_energy-aepo."""
    return NOTEBOOKS[name.partition("-")[0]]


def of_methods(names: Iterable[str], chosen: Sequence[str]) -> list[str]:
    """Notebooks as they are run for the chosen methods: 06_energy becomes 06_energy-<method>, once for each energy."""
    own = {"06_energy": methods.energies(chosen), "06_policy": methods.policies(chosen)}
    found = []
    for name in names:
        kind = NOTEBOOKS[name].gives
        if kind == "own":
            found += [f"{name}-{method}" for method in own[name]]
        elif kind != "guided" or guided(chosen):
            found.append(name)
    return found


def guided(chosen: Iterable[str]) -> list[str]:
    """The chosen methods with a network of the energy, whose gradient notebook 09 looks at."""
    return [m for m in methods.energies(chosen) if methods.METHODS[m].scaled]


def parameters(name: str, task: str, seeds: Sequence[int], chosen: Sequence[str], profile: str) -> dict:
    """What a notebook is given, without device and folder: what it was given decides whether it runs again."""
    given = {"task": task, "seeds": list(seeds), "profile": profile}
    of_kind = {"own": [name.partition("-")[2]], "guided": guided(chosen), "all": list(chosen)}
    kind = entry(name).gives
    return given | ({"methods": of_kind[kind]} if kind in of_kind else {})


def settings_hash(task: Task | None, profile: str) -> str:
    """Hash of a task, but for where its files lie, and of its settings: its notebooks run again when it changes."""
    own = settings.for_task(profile, task.settings if task else {})
    return settings.digest([settings.as_dict(own), vars(task) | {"definition": 0, "file": 0, "note": 0} if task else 0])


def mark(folder: Path, name: str) -> Path:
    """The file that `scripts/run_papermill.py` leaves when a notebook ran to its end: it lists files that must stay."""
    return folder / ".done" / name


def forget_incomplete(folder: Path) -> None:
    """Remove the mark of each notebook that lists a file which is gone, so that the notebook runs again."""
    for path in (folder / ".done").glob("*"):
        if not all((path.parent / line).exists() for line in path.read_text().splitlines()):
            path.unlink()


def reached(folder: Path, chosen: Iterable[str]) -> list[str]:
    """Those of the chosen methods whose own networks are there."""
    needed = {method: of_methods(("06_energy", "06_policy"), [method]) for method in chosen}
    return [method for method, names in needed.items() if all(mark(folder, name).exists() for name in names)]


def can_go_on(folder: Path, chosen: Iterable[str]) -> bool:
    """Whether a run that has not ended has what its evaluation needs for some of its methods."""
    shared = all(mark(folder, name).exists() for name in ("04_behavior", "05_critic"))
    return shared and not mark(folder, "08_results").exists() and bool(reached(folder, chosen))
