"""The commands `aepo data`: what is on disk, and how it gets there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aepo import settings
from aepo.data import tasks
from aepo.files import StudyError, sentence

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

TaskName = Annotated[
    str, typer.Argument(help="Task name (`aepo tasks` lists them), or the path of your own's YAML file.")
]
ProfileName = Annotated[str, typer.Option(help="smoke, quick or full: what is collected differs in size.")]
Clip = Annotated[bool, typer.Option("--clip", help="Move actions outside the action box into it.")]


@sentence()
def find(name: str, profile: str) -> tasks.Task:
    """The task of that name; StudyError where there is none, or no such profile."""
    settings.get(profile)
    return tasks.get(name)


@app.command()
def show(task: TaskName, profile: ProfileName = "quick") -> None:
    """Print what a task's data are: sizes, episodes, returns, spaces, content hash, scores, what is odd."""
    from aepo.data import describe

    for line in describe.description(find(task, profile), profile):
        print(line)


@app.command()
def get(task: TaskName, profile: ProfileName = "quick", clip: Clip = False) -> None:
    """Put a task's data on disk: download them, or collect them where the study makes them. What is there is kept."""
    from aepo.data import describe, storage

    found = find(task, profile)
    _prepare(found, profile)
    if clip:
        storage.ask_to_clip(found.dataset_id(profile))
    print(describe.summary(found, profile))


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="D4RL's HDF5 file.")],
    task: Annotated[str, typer.Option(help="Task whose data the file holds.")],
    clip: Clip = False,
    profile: ProfileName = "quick",
) -> None:
    """Make a task's Minari dataset of a D4RL HDF5 file; one that is there already is kept."""
    from aepo.data import describe, importing

    found = find(task, profile)
    importing.import_hdf5(file, found, found.dataset_id(profile), clip)
    print(describe.summary(found, profile))


@app.command()
def collect(
    task: Annotated[str, typer.Argument(help="A task whose data the study makes itself.", show_default=False)] = "",
    suite: Annotated[str, typer.Option(help="All such tasks of a suite: local, maze2d, or local-small.")] = "",
    profile: ProfileName = "quick",
) -> None:
    """Collect the data of one task, or of a whole suite: a failure of one is reported, the others go on."""
    if bool(task) == bool(suite):
        raise typer.BadParameter("give a TASK or --suite, one of them")
    if task:
        _collect_one(find(task, profile), profile, "")
        return
    with sentence():
        settings.get(profile)
        chosen, failed = [task for task in tasks.suite(suite) if task.recipe], []
    if not chosen:
        raise StudyError(f"the data of suite {suite} are not collected here: `aepo data get TASK` downloads them")
    for number, each in enumerate(chosen, start=1):
        where = f"[{number}/{len(chosen)}] "
        try:
            _collect_one(each, profile, where)
        except StudyError as error:
            failed.append(each.name)
            print(f"aepo: {where}{each.name}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise StudyError(f"{len(failed)} of {len(chosen)} tasks failed: {', '.join(failed)}; call it again for these")


def _collect_one(task: tasks.Task, profile: str, where: str) -> None:
    from aepo.data import datasets, download

    if not task.recipe:
        raise StudyError(
            f"task {task.name} has no recipe, its data are not made here: "
            f"run {datasets.command(task, 'quick')}{download.instead(task)}"
        )
    from aepo.data import describe

    _prepare(task, profile)
    print(f"{where}{describe.summary(task, profile)}", flush=True)


def _prepare(task: tasks.Task, profile: str) -> None:
    from aepo.data import datasets, storage

    dataset_id = task.dataset_id(profile)
    if storage.complete(dataset_id):
        print(f"{task.name}: dataset {dataset_id} is there already and is kept")
    datasets.prepare(task, profile, settings.for_task(profile, task.settings).data)
