"""The console script `aepo`: run the study, print results, export a policy."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from aepo import cli_data, settings
from aepo.data import tasks
from aepo.files import StudyError, sentence
from aepo.methods import CORE, METHODS
from aepo.study import runs

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(cli_data.app, name="data")

Task = Annotated[
    str, typer.Option(help="Task name (`aepo tasks` lists them) or the YAML file of your own; several: a,b,c.")
]
Suite = Annotated[str, typer.Option(help="All tasks of a suite (or local-small) in place of --task.")]
ProfileName = Annotated[str, typer.Option(help="smoke (seconds), quick (minutes) or full (what a paper reports).")]
Methods = Annotated[
    str, typer.Option(help=f"Comma-separated methods of {', '.join(METHODS)}; empty: {', '.join(CORE)}.")
]
Seeds = Annotated[str, typer.Option(help="Number of seeds; empty: the profile's.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RunsDir = Annotated[str, typer.Option(help="Folder of all runs.")]
Cores = Annotated[int, typer.Option(help="Notebooks at a time; 0: as many as there are cores.")]


def main() -> None:
    """Run the command line; a StudyError becomes one sentence and exit code 1."""
    try:
        app()
    except StudyError as error:
        print(f"aepo: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _seeds(seeds: str, profile: str) -> list[int]:
    """As many seeds as were asked for, or the profile's; StudyError where there are none."""
    with sentence():
        default = settings.get(profile).seeds
    if seeds and (not (seeds.isascii() and seeds.isdigit()) or int(seeds) < 1):
        raise StudyError(f"seeds must be a number of seeds >= 1, got {seeds!r}")
    return list(range(int(seeds or default)))


def _words(text: str) -> list[str]:
    """What stands between commas."""
    return [word for word in text.split(",") if word]


def _study(task: str, suite: str, methods: str, seeds: str, profile: str, device: str, runs_dir: str) -> list[runs.Run]:
    """The runs of a command's options, or of their defaults."""
    with sentence():
        found = tasks.choose(task, suite)
    chosen, numbers = _words(methods) or list(CORE), _seeds(seeds, profile)
    return [runs.open_run(each.argument, numbers, chosen, profile, device, runs_dir) for each in found]


def _on_disk(task: tasks.Task) -> str:
    """The profiles whose Minari dataset is complete on disk, with its size; `-` where none is."""
    from aepo.data import storage

    found = []
    for dataset_id in dict.fromkeys(task.dataset_ids.values()):
        if storage.complete(dataset_id):
            files = [path for path in (storage.root() / dataset_id / "data").rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            profiles = [profile for profile, its in task.dataset_ids.items() if its == dataset_id]
            label = "" if len(profiles) == len(settings.PROFILES) else f"{profiles[0]} "
            found.append(f"{label}{size / 1e6:.1f} MB")
    return ", ".join(found) or "-"


@app.command("tasks")
def list_tasks(
    suite: Annotated[str, typer.Option(help="One suite, or local-small: six that fit an hour; empty: all.")] = "",
) -> None:
    """List the tasks, one a line: name, suite, source of the data, environment, size on disk, origin of scores."""
    with sentence():
        chosen = tasks.suite(suite) if suite else list(tasks.TASKS.values())
    rows = [
        (t.name, t.suite, t.source, t.env_id or "none: train-only", _on_disk(t), t.scores if t.env_id else "no score")
        for t in chosen
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def reproduce(
    task: Task = "maze2d-umaze",
    suite: Suite = "",
    profile: ProfileName = "quick",
    methods: Methods = "",
    seeds: Seeds = "",
    device: Device = "auto",
    runs_dir: RunsDir = "runs",
    cores: Cores = 0,
    memory: Annotated[int, typer.Option(help="MB that they may take together; 0: all of the machine's.")] = 0,
    cluster: Annotated[str, typer.Option(help="Run them on a cluster: slurm, or another folder of profiles/.")] = "",
) -> None:
    """Run what is left to do of the tasks: data, training, evaluation, figures; then print the table of results."""
    from aepo import batch
    from aepo.cluster import Place, machine_memory, profile_folder

    folder = profile_folder(cluster)
    place = Place(cores or os.cpu_count() or 1, memory or machine_memory(), device, folder)
    here = "cpu" if folder else device
    batch.reproduce(_study(task, suite, methods, seeds, profile, here, runs_dir), place)


@app.command()
def evaluate(
    task: Task = "maze2d-umaze",
    suite: Suite = "",
    profile: ProfileName = "quick",
    methods: Methods = "",
    seeds: Seeds = "",
    device: Device = "auto",
    runs_dir: RunsDir = "runs",
) -> None:
    """Train and evaluate as `reproduce` does, to the same numbers, one after another and without notebooks and figures."""
    from aepo.study import campaign, summary

    study, failed = _study(task, suite, methods, seeds, profile, device, runs_dir), []
    for run in study:
        try:
            campaign.run_task(run)
            summary.print_table(run.folder)
        except StudyError as error:
            failed.append(run.task.name)
            print(f"aepo: {run.task.name}: {error}", file=sys.stderr)
    if failed:
        raise StudyError(f"{len(failed)} of {len(study)} tasks failed: {', '.join(failed)}")


@app.command()
def theory(profile: ProfileName = "quick", seeds: Seeds = "", runs_dir: RunsDir = "runs", cores: Cores = 0) -> None:
    """Run the notebooks that need no task: 01, the derivation, and 02, the exactly solvable problems."""
    from aepo import batch

    [run] = _study("maze2d-umaze", "", "", seeds, profile, "cpu", runs_dir)
    batch.theory(run, cores or os.cpu_count() or 1)


@app.command()
def performance(profile: ProfileName = "quick", device: Device = "auto", runs_dir: RunsDir = "runs") -> None:
    """Run notebook 10, what it costs, with nothing beside it."""
    from aepo import batch

    [run] = _study("maze2d-umaze", "", "", "", profile, device, runs_dir)
    batch.performance(run)


@app.command()
def results(
    runs_dir: RunsDir = "runs",
    profile: ProfileName = "quick",
    task: Annotated[str, typer.Option(help="Also the returns of one task, with success and intervals.")] = "",
    tables: Annotated[bool, typer.Option(help="Print the tables, or draw the figures only.")] = True,
    document: Annotated[Path | None, typer.Option(help="Put the tables into this file too: docs/results.md.")] = None,
) -> None:
    """Print the study's tables and draw its figures from results.csv alone: scores by task, interquartile means, ranks."""
    from aepo.study import result_figures
    from aepo.study import results as episodes
    from aepo.study import tables as study_tables

    root = runs.resolve(runs_dir)
    path = runs.results_path(root, profile)
    main = study_tables.main_rows(path, profile)
    if task:
        rows = main[main["task"] == task]
        if rows.empty:
            raise StudyError(
                f"{path} holds no results of task {task!r} at {profile}: run `aepo evaluate --task {task}`"
            )
        print(study_tables.readable_task_table(study_tables.task_table(rows)).to_string(index=False), end="\n\n")
    if tables:
        print(study_tables.markdown_results(path, profile), end="\n\n")
    if document is not None:
        study_tables.write_document(document, path, profile)
    variants = study_tables.variant_scores(episodes.read_results(path), profile)
    print("Figures:")
    folder = root.parent / "figures" / profile / "study"
    for figure in result_figures.draw_study(main, folder) + result_figures.draw_variants(variants, folder):
        print(f"  {figure}")


@app.command()
def ablations(
    task: Task = "maze2d-umaze",
    profile: ProfileName = "quick",
    methods: Annotated[
        str, typer.Option(help=f"Methods that returns.csv holds beside; empty: those evaluated, or {', '.join(CORE)}.")
    ] = "",
    seeds: Seeds = "",
    device: Device = "auto",
    runs_dir: RunsDir = "runs",
    questions: Annotated[
        str, typer.Option(help="Comma-separated, as factor,own; empty: all; a name that is none: lists them.")
    ] = "",
) -> None:
    """Run the variants of notebook 11 on tasks, without the notebook: their episodes go into results.csv."""
    from aepo.study import ablations as variants
    from aepo.study import campaign

    asked = _words(questions) or list(variants.QUESTIONS)
    unknown = [name for name in asked if name not in variants.QUESTIONS]
    if unknown:
        raise StudyError(f"unknown question {', '.join(unknown)}: choose from {', '.join(variants.QUESTIONS)}")
    for run in _study(task, "", methods, seeds, profile, device, runs_dir):
        evaluated = tuple(runs.read_manifest(run.folder).get("evaluation", {}))
        if evaluated and not methods:
            run = replace(run, methods=evaluated)
        campaign.run_task(run)
        for variant in variants.variants_of(profile, run.methods):
            if variant.question in asked:
                means = variants.evaluate(run, variant).groupby("method")["return"].mean().round(1)
                print(f"{run.task.name}: {variant.name}: {means.to_dict()}", flush=True)
        campaign.run_task(run)


@app.command()
def verify(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders above them, such as runs/quick.")],
) -> None:
    """Recompute the hashes of runs and the numbers of their tables, and print what does not match."""
    from aepo.study import verify as checks

    found = [folder for given in folders for folder in checks.find(given)]
    wrong = 0
    for folder in found:
        problems = list(checks.problems(folder))
        wrong += bool(problems)
        data = "" if checks.data_here(folder) else "; its data are not here and were not looked at"
        print(f"{folder}: {f'{len(problems)} do not match' if problems else 'everything matches'}{data}")
        for problem in problems:
            typer.secho(f"  {problem}", fg="red")
    if wrong:
        raise StudyError(f"{wrong} of {len(found)} runs do not match what made them: the lines above say where")


@app.command("methods")
def list_methods() -> None:
    """List the methods, one a line: name, label, source."""
    width = max(map(len, METHODS))
    for method in METHODS.values():
        print(f"{method.name.ljust(width)}  {method.label}: {method.source}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder runs/<profile>/<task> of a finished run.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed to keep.")] = 0,
    methods: Annotated[str, typer.Option(help="Comma-separated methods to keep.")] = ",".join(CORE),
) -> None:
    """Write one seed of a run's last networks as a small folder that `Policy.load` reads."""
    from aepo.study.export import export as export_seed

    size = export_seed(runs.find_folder(run), target, seed, methods.split(","))
    print(f"{target}: seed {seed}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
