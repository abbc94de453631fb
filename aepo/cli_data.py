"""The commands `aepo data`: what is on disk, and how it gets there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from aepo import settings
from aepo.data import tasks
from aepo.files import StudyError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

TaskName = Annotated[
    str, typer.Argument(help="Task name (`aepo tasks` lists them), or the path of your own's YAML file.")
]
ProfileName = Annotated[str, typer.Option(help="smoke, quick or full: what is collected differs in size.")]
Clip = Annotated[bool, typer.Option("--clip", help="Move actions outside the action box into it.")]


def find(name: str) -> tasks.Task:
    """The task of that name; StudyError where there is none."""
    try:
        return tasks.get(name)
    except ValueError as error:
        raise StudyError(str(error)) from None


def known_profile(name: str) -> str:
    """The name of a profile that there is; else StudyError."""
    try:
        settings.get(name)
    except ValueError as error:
        raise StudyError(str(error)) from None
    return name


@app.command()
def show(task: TaskName, profile: ProfileName = "quick") -> None:
    """Print what a task's data are: sizes, episodes, returns, spaces, content hash, scores, what is odd."""
    from aepo.data import describe

    found = find(task)
    for line in describe.description(found, known_profile(profile)):
        print(line)


@app.command()
def get(task: TaskName, profile: ProfileName = "quick", clip: Clip = False) -> None:
    """Put a task's data on disk: download them, or collect them where the study makes them. What is there is kept."""
    from aepo.data import describe, storage

    found = find(task)
    _prepare(found, known_profile(profile))
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

    found = find(task)
    importing.import_hdf5(file, found, found.dataset_id(known_profile(profile)), clip)
    print(describe.summary(found, profile))


@app.command()
def collect(
    task: Annotated[str, typer.Argument(help="A task whose data the study makes itself.", show_default=False)] = "",
    suite: Annotated[str, typer.Option(help="All such tasks of a suite: local, maze2d, or local-small.")] = "",
    profile: ProfileName = "quick",
) -> None:
    """Collect the data of one task, or of a whole suite: a failure of one is reported, the others go on."""
    from aepo.data import describe

    if bool(task) == bool(suite):
        raise typer.BadParameter("give a TASK or --suite, one of them")
    known_profile(profile)
    chosen = _suite(suite) if suite else [find(task)]
    failed = []
    for i, each in enumerate(chosen):
        where = f"[{i + 1}/{len(chosen)}] " if suite else ""
        try:
            _collectable(each)
            _prepare(each, profile)
            print(f"{where}{describe.summary(each, profile)}", flush=True)
        except StudyError as error:
            if not suite:
                raise
            failed.append(each.name)
            print(f"aepo: {where}{each.name}: {error}", file=sys.stderr, flush=True)
    if failed:
        raise StudyError(f"{len(failed)} of {len(chosen)} tasks failed: {', '.join(failed)}; call it again for these")


def _suite(name: str) -> list[tasks.Task]:
    try:
        chosen = [task for task in tasks.suite(name) if task.recipe]
    except ValueError as error:
        raise StudyError(str(error)) from None
    if not chosen:
        raise StudyError(f"the data of suite {name} are not collected here: `aepo data get TASK` downloads them")
    return chosen


def _collectable(task: tasks.Task) -> None:
    if not task.recipe:
        from aepo.data import datasets, download

        raise StudyError(
            f"task {task.name} has no recipe, its data are not made here: "
            f"run {datasets.command(task, 'quick')}{download.instead(task)}"
        )


def _prepare(task: tasks.Task, profile: str) -> None:
    from aepo.data import datasets, storage

    dataset_id = task.dataset_id(profile)
    if storage.complete(dataset_id):
        print(f"{task.name}: dataset {dataset_id} is there already and is kept")
    datasets.prepare(task, profile, settings.for_task(profile, task.settings).data)
