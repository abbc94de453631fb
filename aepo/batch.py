"""`make reproduce`: start Snakemake on the tasks, show where every notebook stands, end with the table and what failed."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import typer

from aepo import files, lifeline, settings
from aepo.cluster import Place, cancel, machine_memory
from aepo.core.networks import select_seeds
from aepo.files import StudyError
from aepo.methods import DATASET, trained_in
from aepo.study import runs
from aepo.study.results import read_returns
from aepo.study.runs import Run
from aepo.study.tables import readable_task_table, task_table
from aepo.watch import Part, short, watch

SAID_WHEN_ENDED = ("Will exit after finishing currently running jobs", "Terminating processes on user request")


def reproduce(study: Sequence[Run], place: Place) -> None:
    """Bring the runs of a study to their end and print their table: what is finished is not done again.

    What fails does not keep the rest from going on: StudyError says at the end what it was.
    """
    parts = [
        Part(r.folder, runs.products(r.folder, r.figures, r.methods, r.profile, r.task.env_id is not None))
        for r in study
    ]
    first, started = study[0], time.time()
    ran, well = _bring_to_end(study, parts, "study", place)
    failed = {} if well else {part.name: part.failure(started) for part in parts if set(part.made) - set(part.marks())}
    if well and not ran:
        names = ", ".join(part.name for part in parts)
        where = first.folder if len(study) == 1 else first.folder.parent
        print(f"Nothing to do: every notebook of {names} at {first.profile_name} is up to date in {where}.")
    if len(study) == 1:
        _print_run(first, failed)
    else:
        _print_study(study, failed)


def _print_run(run: Run, failed: Mapping[str, str | None]) -> None:
    """The table of one run, with what is there of a failed one, and where its files are; StudyError says what failed."""
    if not failed or (run.folder / ".done" / "08_results").exists():
        print_table(run.folder)
        _print_missing([run])
        _print_figures(run.figures)
        files = f"Executed notebooks, networks, manifest: {short(run.folder)}"
        print(f"{files}   all episodes: {short(run.folder / 'returns.csv')}")
    if failed:
        raise StudyError(failed[run.task.name] or _last_words(run.folder / "snakemake.log"))


def _print_missing(study: Sequence[Run]) -> None:
    for run in study:
        missing = [m for m in run.methods if m not in _evaluated(run)]
        if missing:
            print(f"missing: {run.task.name}: {', '.join(missing)}")


def _print_study(study: Sequence[Run], failed: Mapping[str, str | None]) -> None:
    """Scores of tasks and methods, what is missing, one red line a failed task; StudyError where there is one."""
    first = study[0]
    print(f"\n{first.profile_name}: mean score of the last checkpoint (mean return where a task has no score)")
    print(study_table(study).to_string(), end="\n\n")
    _print_missing(study)
    folder = first.folder.parent
    print(f"Executed notebooks, networks, manifests: {short(folder)}   figures: {short(first.figures.parent)}")
    if failed:
        for name, sentence in failed.items():
            typer.secho(f"{name}: {sentence or 'not all of its notebooks ran'}", fg="red", err=True)
        log = short(_log(folder, [run.folder.name for run in study]))
        raise StudyError(
            f"{len(failed)} of {len(study)} tasks failed ({', '.join(failed)}), what they do not need is finished; "
            f"Snakemake's log: {log}"
        )


def _evaluated(run: Run) -> list[str]:
    """Methods that the run's returns.csv holds; all of them where the task is train-only and its run finished."""
    if not (run.folder / "returns.csv").exists():
        return []
    if run.task.env_id is None:
        return list(run.methods)
    return sorted(set(read_returns(run.folder / "returns.csv")["method"]))


def mean_scores(path: Path) -> dict[str, float]:
    """Mean score of each method at the last checkpoint; mean return where the task has no score."""
    try:
        frame = read_returns(path)
    except (files.StudyError, ValueError, KeyError):  # not there yet, or damaged: `aepo verify` says so
        return {}
    main = frame[(frame["variant"] == "") & (frame["method"] != DATASET)]
    means = main.groupby("method", sort=False)[["return", "score"]].mean()
    return means["score"].where(means["score"].notna(), means["return"]).to_dict()


def study_table(study: Sequence[Run]) -> pd.DataFrame:
    """Tasks down, methods across: mean score of the last checkpoint, or mean return without scores; `-` where missing."""
    rows = {}
    for run in study:
        means = mean_scores(run.folder / "returns.csv")
        rows[run.task.name] = {m: f"{means[m]:.1f}" if m in means else "-" for m in run.methods}
    return pd.DataFrame.from_dict(rows, orient="index")


def theory(run: Run, cores: int) -> None:
    """Run the notebooks that need no task: the derivation and the exactly solvable problems."""
    _without_task(run, cores, "theory", runs.THEORY_FIGURES)


def performance(run: Run) -> None:
    """Run notebook 10 anew, with nothing beside it: times are not kept from an earlier run."""
    (run.folder.parent / "theory" / ".done" / "10_performance").unlink(missing_ok=True)
    _without_task(run, 1, "performance", runs.PERFORMANCE_FIGURES)


def _without_task(run: Run, cores: int, goal: str, drawn: Mapping[str, Sequence[str]]) -> None:
    folder, figures, started = run.folder.parent / "theory", run.figures.parent / "theory", time.time()
    part = Part(folder, runs.theory_products(folder, figures, drawn))
    ran, well = _bring_to_end([run], [part], goal, Place(cores, machine_memory(), run.device))
    if not well:
        raise StudyError(part.failure(started) or _last_words(folder / "snakemake.log"))
    if not ran:
        print(f"Nothing to do: {', '.join(drawn)} at {run.profile_name} are up to date in {folder}.")
    print("Figures:")
    for notebook, names in drawn.items():
        for name in names:
            print(f"  {short(figures / f'{notebook[:2]}_{name}.png')}")
    print(f"Executed notebooks: {short(folder)}")


def _print_figures(folder: Path) -> None:
    print("Figures:")
    for path in sorted(folder.glob("*.png")):
        print(f"  {short(path)}")


def _log(workdir: Path, names: Sequence[str]) -> Path:
    """Snakemake's log: in the folder of the one part that it fills, or in that of the study."""
    if len(names) == 1:
        return workdir / names[0] / "snakemake.log"
    return workdir / "study" / f"snakemake-{settings.digest(sorted(names))[:8]}.log"


def _bring_to_end(study: Sequence[Run], parts: Sequence[Part], goal: str, place: Place) -> tuple[bool, bool]:
    """Let Snakemake reach a goal for the parts: whether any notebook ran, and whether all went well."""
    root, first = files.project_root(), study[0]
    if not (root / "Snakefile").exists():
        raise StudyError(f"there is no Snakefile at or above {Path.cwd()}: call this inside a checkout of the study")
    workdir = first.folder.parent
    log = _log(workdir, [part.name for part in parts])
    log.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        runs.forget_incomplete(part.folder, part.made)
    with contextlib.ExitStack() as held:
        names = sorted(part.name for part in parts)  # in one order, so that two processes cannot wait for each other
        descriptors = [held.enter_context(files.lock(workdir, f"reproduce-{name}")) for name in names]
        for part in parts:
            shutil.rmtree(part.folder / "progress", ignore_errors=True)
        before = [part.marks() for part in parts]
        output = held.enter_context(open(log, "w"))

        started, jobs = time.time(), place.slurm_prefix(workdir, names)
        cancel(jobs)  # those of a call that was killed
        if jobs:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an end by SIGTERM cancels them too

        def snakemake(tasks: Sequence[Run], **more: int) -> int:
            command = _command(root, workdir, goal, place, tasks, {"device": place.device} | more)
            command += ["--slurm-jobname-prefix", jobs] * bool(jobs)
            process = lifeline.start(command, stdout=output, stderr=subprocess.STDOUT, cwd=root, pass_fds=descriptors)
            try:
                watch(parts, process, started)
            except BaseException:
                lifeline.stop(process)  # before its jobs are cancelled, which it would submit again
                cancel(jobs)
                raise
            finally:
                lifeline.stop(process)
            return process.returncode

        code = snakemake(study)
        failed = code != 0 and not _interrupted(code, log)
        going_on = [run for run in study if _can_go_on(run)] if failed and goal == "study" else []
        if going_on:
            snakemake(going_on, partial=1)
        return [part.marks() for part in parts] != before, code == 0


def _interrupted(code: int, log: Path) -> bool:
    """Whether Snakemake was ended from outside, so that what is unfinished did not fail: the next call goes on with it."""
    return code < 0 or any(sentence in log.read_text() for sentence in SAID_WHEN_ENDED)


def _can_go_on(run: Run) -> bool:
    """Whether an unfinished run has what its evaluation needs for some of its methods."""
    done = {path.name for path in (run.folder / ".done").glob("*")}
    some = any(trained_in(m) in done | {None} for m in run.methods)
    return some and {"04_behavior", "05_critic"} <= done and "08_results" not in done


def _command(
    root: Path, workdir: Path, goal: str, place: Place, study: Sequence[Run], more: Mapping[str, object]
) -> list[str]:
    """Snakemake's command line for a goal."""
    first = study[0]
    values = {
        "task": ",".join(run.task.argument for run in study),
        "profile": first.profile_name,
        "methods": ",".join(first.methods),
        "seeds": len(first.seeds),
        "runs_dir": workdir.parent,
        "root": root,
    } | more
    options = {
        "--snakefile": [root / "Snakefile"],
        "--directory": [workdir / ".snakemake-work"],
        "--nolock": [],
        "--workflow-profile": [place.cluster or root / "profiles" / "default"],
        "--config": [f"{key}={value}" for key, value in values.items()],
    }
    if place.cluster is None:
        options |= {"--cores": [place.cores], "--resources": [f"mem_mb={place.memory}", "gpu=1"]}
    words = [word for name, given in options.items() for word in (name, *given)]
    return [sys.executable, "-m", "snakemake", goal, *map(str, words)]


def _last_words(log: Path) -> str:
    """One sentence for a stop before any notebook began."""
    tail = [line for line in log.read_text().splitlines() if line.strip()][-1:]
    return f"Snakemake stopped ({' '.join(tail)}); its log is {short(log)}"


def print_table(folder: Path) -> None:
    """The table of results of one run: last checkpoint, means over seeds and episodes, 95% bootstrap intervals."""
    table = task_table(read_returns(folder / "returns.csv"))
    print(
        f"\n{folder.name} ({folder.parent.name}): last checkpoint, mean and 95% bootstrap interval over seeds and episodes"
    )
    print(readable_task_table(table).to_string(index=False), end="\n\n")


def export(folder: Path, target: Path, seed: int, methods: Sequence[str]) -> int:
    """Copy one seed of what some methods act with to `target`, the manifest with it; returns the bytes written."""
    if Path(target).resolve() == Path(folder).resolve():
        raise StudyError(f"{target} is the run itself: export into another folder")
    manifest = runs.read_manifest(folder)
    evaluated = {name: entry for name, entry in manifest.get("evaluation", {}).items() if name in methods}
    lacking = [name for name in methods if name not in evaluated]
    if lacking:
        raise StudyError(f"{folder} has no evaluation of {', '.join(lacking)}: run `make reproduce METHODS=...` first")
    used = {stage for name, entry in evaluated.items() for stage in runs.stages_of(name, entry["beta"]).values()}
    for stage in sorted(used):
        path = folder / f"{stage}.safetensors"
        tensors, meta = files.load_tensors(path)
        seeds = files.known(meta, path)["seeds"]
        if seed not in seeds:
            raise StudyError(f"{folder} holds seeds {seeds}, not {seed}")
        row, count = seeds.index(seed), len(seeds)
        files.check_tensors(tensors, count, path)
        chosen = {key: select_seeds(t, [row], count) for key, t in tensors.items() if not key.startswith("q_target.")}
        meta = {key: value for key, value in meta.items() if key not in ("format", "sha256")} | {"seeds": [seed]}
        files.write_artifact(target / f"{stage}.safetensors", chosen, meta)
    kept = {name: entry | {"seeds": [seed]} for name, entry in manifest["stages"].items() if name in used}
    files.write_json(target / "manifest.json", manifest | {"stages": kept, "evaluation": evaluated})
    return sum(path.stat().st_size for path in target.iterdir())
