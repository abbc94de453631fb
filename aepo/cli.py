"""The console script `aepo`: run the study, print results, export a policy, put data on disk (`aepo data`)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from aepo import batch, environments, settings
from aepo.data import datasets, describe, download, importing, storage, tasks
from aepo.files import StudyError, datasets_root, sentence
from aepo.methods import CORE, METHODS
from aepo.study import ablations as variants
from aepo.study import results as episodes
from aepo.study import runs, stages
from aepo.study import tables as study_tables
from aepo.study import verify as checks

options: dict[str, Any] = {"add_completion": False, "no_args_is_help": True, "pretty_exceptions_enable": False}
app = typer.Typer(help=__doc__, **options)
data = typer.Typer(help="What data are on disk, and how they get there.", **options)
app.add_typer(data, name="data")

UMAZE, MOST_SEEDS = "maze2d-umaze", 1_000
Task = Annotated[str, typer.Option(help="Task (`aepo tasks` lists them) or the YAML file of your own; several: a,b,c.")]
Suite = Annotated[str, typer.Option(help="All tasks of a suite (or local-small) in place of --task.")]
ProfileName = Annotated[str, typer.Option(help="smoke (seconds), quick (minutes), study (tables), full (a paper).")]
Methods = Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(METHODS)}; empty: {', '.join(CORE)}.")]
Seeds = Annotated[str, typer.Option(help="Number of seeds; empty: the profile's.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RunsDir = Annotated[str, typer.Option(help="Folder of all runs.")]
Cores = Annotated[int, typer.Option(min=0, help="Notebooks at a time; 0: as many as there are cores.")]
DataTask = Annotated[str, typer.Argument(help="Task (`aepo tasks` lists them), or the path of your own's YAML file.")]
Folders = Annotated[list[Path], typer.Argument(help="Runs, or folders above.", default_factory=lambda: [Path("runs")])]
Clip = Annotated[bool, typer.Option("--clip", help="Move actions outside the action box into it.")]


def main() -> None:
    """Run the command line; a StudyError becomes one sentence and exit code 1."""
    try:
        datasets_root()
        app()
    except StudyError as error:
        print(f"aepo: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _words(text: str) -> list[str]:
    """What stands between commas."""
    return [word for word in text.split(",") if word]


def _study(
    profile: str, device: str, runs_dir: str, *, task: str = UMAZE, suite: str = "", methods: str = "", seeds: str = ""
) -> list[runs.Run]:
    """The runs of a command's options, or of their defaults."""
    with sentence():
        found, default = tasks.choose(task, suite), settings.get(profile).seeds
    if seeds and not (seeds.isascii() and seeds.isdigit() and len(seeds) < 9 and 1 <= int(seeds) <= MOST_SEEDS):
        raise StudyError(f"seeds must be a number of seeds from 1 to {MOST_SEEDS}, got {seeds!r}")
    numbers, chosen = list(range(int(seeds or default))), _words(methods) or list(CORE)
    return [runs.open_run(each.argument, numbers, chosen, profile, device, runs_dir) for each in found]


def _for_each(works: Mapping[str, Callable[[], str]]) -> None:
    """Do the work of each task and print what came of it; of several, one that fails is named and the others go on."""
    failed = []
    for number, (name, work) in enumerate(works.items(), start=1):
        where = f"[{number}/{len(works)}] " if len(works) > 1 else ""
        try:
            print(f"{where}{work()}", flush=True)
        except Exception as error:
            if len(works) == 1:
                raise
            failed.append(name)
            kind = "" if isinstance(error, StudyError) else f"{type(error).__name__}: "
            print(f"aepo: {where}{name}: {kind}{error}", file=sys.stderr, flush=True)
    if failed:
        raise StudyError(f"{len(failed)} of {len(works)} tasks failed: {', '.join(failed)}; call it again for these")


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows with their cells below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def reproduce(
    task: Task = UMAZE,
    suite: Suite = "",
    profile: ProfileName = "quick",
    methods: Methods = "",
    seeds: Seeds = "",
    device: Device = "auto",
    runs_dir: RunsDir = "runs",
    cores: Cores = 0,
    memory: Annotated[int, typer.Option(min=0, help="MB that they may take together; 0: all of the machine's.")] = 0,
    cluster: Annotated[str, typer.Option(help="Run them on a cluster: slurm, or another folder of profiles/.")] = "",
) -> None:
    """Run what is left to do of the tasks: data, training, evaluation, figures; then print the table of results."""
    folder = batch.profile_folder(cluster)
    study = _study(profile, "cpu" if folder else device, runs_dir, task=task, suite=suite, methods=methods, seeds=seeds)
    if len(study) == 1 and not folder and study[0].task.env_id:  # of several, one that fails is named, the others go on
        environments.make(study[0].task).close()
    batch.reproduce(study, batch.Place(cores, memory, device, folder))


@app.command()
def evaluate(
    task: Task = UMAZE,
    suite: Suite = "",
    profile: ProfileName = "quick",
    methods: Methods = "",
    seeds: Seeds = "",
    device: Device = "auto",
    runs_dir: RunsDir = "runs",
) -> None:
    """Train and evaluate as `reproduce` does, to the same numbers, one after another and without notebooks and figures."""
    study = _study(profile, device, runs_dir, task=task, suite=suite, methods=methods, seeds=seeds)
    _for_each({run.task.name: partial(_evaluated, run) for run in study})


def _evaluated(run: runs.Run) -> str:
    """What notebooks 03 to 08 compute for the run: networks, returns.csv, the rows of results.csv; its table."""
    if run.task.env_id:  # tried before hours of training
        environments.make(run.task).close()
    datasets.prepare(run.task, run.profile_name, run.profile.data)
    data = datasets.load(run.task, run.profile_name)
    runs.record_data(run.folder, data)
    behavior = stages.train_behavior(run, data)
    for method in run.methods:
        stages.train_method(run, data, behavior, method)
    episodes.write_returns(run, data)
    episodes.merge_results(run)
    return batch.table(run.folder)


@app.command()
def ablations(
    task: Task = UMAZE,
    profile: ProfileName = "quick",
    methods: Annotated[str, typer.Option(help="Methods that returns.csv holds beside; empty: those evaluated.")] = "",
    seeds: Seeds = "",
    device: Device = "auto",
    runs_dir: RunsDir = "runs",
    questions: Annotated[str, typer.Option(help="As search,grid; empty: all; a name that is none: lists them.")] = "",
) -> None:
    """Run the variants of notebook 11 on tasks, without the notebook: their episodes go into results.csv."""
    asked = _words(questions) or list(variants.QUESTIONS)
    if unknown := [name for name in asked if name not in variants.QUESTIONS]:
        raise StudyError(f"unknown question {', '.join(unknown)}: choose from {', '.join(variants.QUESTIONS)}")
    study = _study(profile, device, runs_dir, task=task, methods=methods, seeds=seeds)
    _for_each({run.task.name: partial(_varied, run, asked, bool(methods)) for run in study})


def _varied(run: runs.Run, asked: Sequence[str], chosen: bool) -> str:
    """Evaluate a run's methods, those evaluated already where none were `chosen`, and variants of the questions asked."""
    evaluated = tuple(runs.read_manifest(run.folder).get("evaluation", {}))
    if evaluated and not chosen:
        run = replace(run, methods=evaluated)
    _evaluated(run)
    for variant in variants.variants_of(run.profile_name, run.methods):
        if variant.question in asked:
            means = variants.evaluate(run, variant).groupby("method")["return"].mean().round(1)
            print(f"{run.task.name}: {variant.name}: {means.to_dict()}", flush=True)
    return _evaluated(run)


@app.command()
def theory(profile: ProfileName = "quick", seeds: Seeds = "", runs_dir: RunsDir = "runs", cores: Cores = 0) -> None:
    """Run the notebooks that need no task: 01, the derivation, and 02, the exactly solvable problems."""
    batch.without_task(_study(profile, "cpu", runs_dir, seeds=seeds)[0], cores, "theory")


@app.command()
def performance(profile: ProfileName = "quick", device: Device = "auto", runs_dir: RunsDir = "runs") -> None:
    """Run notebook 10, what it costs, with nothing beside it."""
    batch.without_task(_study(profile, device, runs_dir)[0], 1, "performance")


@app.command()
def results(
    runs_dir: RunsDir = "runs",
    profile: ProfileName = "quick",
    task: Annotated[str, typer.Option(help="Also the returns of one task, with success and intervals.")] = "",
    tables: Annotated[bool, typer.Option(help="Print the tables, or draw the figures only.")] = True,
    document: Annotated[Path | None, typer.Option(help="Put the tables into this file too: docs/results.md.")] = None,
) -> None:
    """Print the study's tables and draw its figures from results.csv alone."""
    from aepo.study import result_figures  # draws, which takes a second to import

    root = runs.resolve(runs_dir)
    path = runs.results_path(root, profile)
    main = study_tables.main_rows(path, profile)
    if task:
        rows = main[main["task"] == task]
        if rows.empty:
            remedy = f"run `aepo evaluate --task {task} --profile {profile}`"
            raise StudyError(f"{path} has no results of {task!r} at {profile}: {remedy}")
        print(study_tables.readable_task_table(study_tables.task_table(rows)).to_string(index=False), end="\n\n")
    if tables:
        print(study_tables.markdown_results(path, profile), end="\n\n")
    if document is not None:
        study_tables.write_document(document, path, profile)
    variants = study_tables.variant_scores(episodes.read_results(path), profile)
    folder = root.parent / "figures" / profile / "study"
    batch.print_figures(result_figures.draw_study(main, folder) + result_figures.draw_variants(variants, folder))


@app.command()
def verify(folders: Folders) -> None:
    """Recompute the hashes of runs and the numbers of their tables, and print what does not match."""
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


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder runs/<profile>/<task> of a finished run.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed to keep.")] = 0,
    methods: Annotated[str, typer.Option(help="Comma-separated methods to keep.")] = ",".join(CORE),
) -> None:
    """Write one seed of a run's last networks as a small folder that `Policy.load` reads."""
    size = runs.export(runs.find_folder(run), target, seed, _words(methods))
    print(f"{target}: seed {seed}, {size / 1e6:.2f} MB")


@app.command("methods")
def list_methods() -> None:
    """List the methods, one a line: name, label, source."""
    _print_columns([(method.name, f"{method.label}: {method.source}") for method in METHODS.values()])


@app.command("tasks")
def list_tasks(suite: Annotated[str, typer.Option(help="One suite, or local-small; empty: all.")] = "") -> None:
    """List the tasks: name, suite, source of the data, environment, profiles whose data are here, origin of scores."""
    with sentence():
        chosen = tasks.suite(suite) if suite else list(tasks.TASKS.values())
    rows = [("task", "suite", "data", "environment", "data here at", "scores")]
    for task in sorted(chosen, key=lambda task: not task.recipe):
        here = ",".join(profile for profile, dataset_id in task.dataset_ids.items() if storage.complete(dataset_id))
        played = (task.env_id, task.scores) if task.env_id else ("none: train-only", "no score")
        rows.append((task.name, task.suite, task.source, played[0], here or "-", played[1]))
    _print_columns(rows)


@sentence()
def _find(name: str, profile: str) -> tasks.Task:
    """The task of that name; StudyError where there is none, or no such profile."""
    settings.get(profile)
    return tasks.get(name)


@data.command()
def show(task: DataTask, profile: ProfileName = "quick") -> None:
    """Print what a task's data are: sizes, episodes, returns, spaces, content hash, scores, what is odd."""
    print(*describe.description(_find(task, profile), profile), sep="\n")


@data.command()
def get(task: DataTask, profile: ProfileName = "quick", clip: Clip = False) -> None:
    """Put a task's data on disk: download them, or collect them where the study makes them. What is there is kept."""
    print(_put_on_disk(_find(task, profile), profile, clip))


def _put_on_disk(task: tasks.Task, profile: str, clip: bool = False) -> str:
    """Download or collect a task's data where they are not there; what they are, in one line."""
    dataset_id = task.dataset_ids[profile]
    if storage.complete(dataset_id):
        print(f"{task.name}: dataset {dataset_id} is there already and is kept")
    datasets.prepare(task, profile, settings.for_task(profile, task.settings).data, clip)
    return describe.summary(task, profile)


@data.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="HDF5 file of D4RL, d3rlpy, OGBench or Minari.")],
    task: Annotated[str, typer.Option(help="Task whose data the file holds.")],
    clip: Clip = False,
    profile: ProfileName = "quick",
) -> None:
    """Make a task's Minari dataset of an HDF5 file; that of the same file is kept."""
    found = _find(task, profile)
    importing.import_hdf5(file, found, found.dataset_ids[profile], clip)
    print(describe.summary(found, profile))


@data.command()
def collect(
    task: Annotated[str, typer.Argument(help="A task whose data the study makes itself.", show_default=False)] = "",
    suite: Annotated[str, typer.Option(help="All such tasks of a suite: local, maze2d, or local-small.")] = "",
    profile: ProfileName = "quick",
) -> None:
    """Collect the data of one task, or of a whole suite: a failure of one is reported, the others go on."""
    if bool(task) == bool(suite):
        raise typer.BadParameter("give a TASK or --suite, one of them")
    with sentence():
        settings.get(profile)
        named = [tasks.get(task)] if task else tasks.suite(suite)
    chosen = [each for each in named if each.recipe]
    if not chosen:
        own = f"run {datasets.command(named[0], profile)}{download.instead(named[0])}"
        whose, remedy = (named[0].name, own) if task else (f"suite {suite}", "`aepo data get TASK` downloads them")
        raise StudyError(f"the data of {whose} are not collected here: {remedy}")
    _for_each({each.name: partial(_put_on_disk, each, profile) for each in chosen})


if __name__ == "__main__":
    main()
