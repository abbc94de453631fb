"""`make reproduce`: start Snakemake on the tasks, show where every notebook stands, end with the table and what failed."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer

from aepo import files, lifeline, settings
from aepo.cluster import Place, cancel, machine_memory
from aepo.files import StudyError, short
from aepo.study import notebooks, summary
from aepo.study.runs import Run
from aepo.watch import Part, watch

SAID_WHEN_ENDED = ("Will exit after finishing currently running jobs", "Terminating processes on user request")


def reproduce(study: Sequence[Run], place: Place) -> None:
    """Bring the runs of a study to their end and print their table: what is finished is not done again.

    What fails does not keep the rest from going on: StudyError says at the end what it was.
    """
    first, started = study[0], time.time()
    parts = [Part(run.folder, tuple(notebooks.of_methods(notebooks.STUDY, run.methods))) for run in study]
    ran, well = _bring_to_end(study, parts, "study", place)
    failed = (
        {} if well else {part.name: part.failure(started) for part in parts if len(part.marks()) < len(part.notebooks)}
    )
    if well and not ran:
        names = ", ".join(part.name for part in parts)
        where = first.folder if len(study) == 1 else first.folder.parent
        print(f"Nothing to do: every notebook of {names} at {first.profile_name} is up to date in {where}.")
    if len(study) > 1:
        summary.print_study(study)
        _tell_failed(parts, failed)
        return
    if not failed or "08_results" in parts[0].marks():
        summary.print_run(first)
    if failed:
        raise StudyError(failed[first.task.name] or _last_words(parts))


def _tell_failed(parts: Sequence[Part], failed: dict[str, str | None]) -> None:
    """One red line a failed task, then the StudyError of all."""
    for name, sentence in failed.items():
        typer.secho(f"{name}: {sentence or 'not all of its notebooks ran'}", fg="red", err=True)
    if failed:
        raise StudyError(
            f"{len(failed)} of {len(parts)} tasks failed ({', '.join(failed)}), what they do not need is finished; "
            f"Snakemake's log: {short(_log(parts))}"
        )


def theory(run: Run, cores: int) -> None:
    """Run the notebooks that need no task: the derivation and the exactly solvable problems."""
    _without_task(run, cores, "theory", notebooks.THEORY)


def performance(run: Run) -> None:
    """Run notebook 10 anew, with nothing beside it: times are not kept from an earlier run."""
    notebooks.mark(run.folder.parent / "theory", notebooks.PERFORMANCE[0]).unlink(missing_ok=True)
    _without_task(run, 1, "performance", notebooks.PERFORMANCE)


def _without_task(run: Run, cores: int, goal: str, names: tuple[str, ...]) -> None:
    part, started = Part(run.folder.parent / "theory", names), time.time()
    ran, well = _bring_to_end([run], [part], goal, Place(cores, machine_memory(), run.device))
    if not well:
        raise StudyError(part.failure(started) or _last_words([part]))
    if not ran:
        print(f"Nothing to do: {', '.join(names)} at {run.profile_name} are up to date in {part.folder}.")
    drawn = run.figures.parent / "theory"
    summary.print_figures([path for name in names for path in sorted(drawn.glob(f"{name[:2]}_*.png"))])
    print(f"Executed notebooks: {short(part.folder)}")


def _log(parts: Sequence[Part]) -> Path:
    """Snakemake's log: in the folder of the one part that it fills, or in that of the study."""
    if len(parts) == 1:
        return parts[0].folder / "snakemake.log"
    names = sorted(part.name for part in parts)
    return parts[0].folder.parent / "study" / f"snakemake-{settings.digest(names)[:8]}.log"


def _last_words(parts: Sequence[Part]) -> str:
    """One sentence for a stop before any notebook began."""
    tail = [line for line in _log(parts).read_text().splitlines() if line.strip()][-1:]
    return f"Snakemake stopped ({' '.join(tail)}); its log is {short(_log(parts))}"


def _bring_to_end(study: Sequence[Run], parts: Sequence[Part], goal: str, place: Place) -> tuple[bool, bool]:
    """Let Snakemake reach a goal for the parts: whether any notebook ran, and whether all went well."""
    workdir, log = study[0].folder.parent, _log(parts)
    log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        names = sorted(part.name for part in parts)  # in one order, so that two processes cannot wait for each other
        locks = [held.enter_context(files.lock(workdir, f"reproduce-{name}")) for name in names]
        output = held.enter_context(open(log, "w"))
        for part in parts:
            shutil.rmtree(part.folder / "progress", ignore_errors=True)
        before, jobs = [part.marks() for part in parts], place.slurm_prefix(workdir, names)
        cancel(jobs)  # those of a call that was killed
        if jobs:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an end by SIGTERM cancels them too
        started = time.time()

        def snakemake(tasks: Sequence[Run], partial: bool = False) -> int:
            command = _command(goal, place, tasks, jobs, partial)
            options = {"stdout": output, "stderr": subprocess.STDOUT, "cwd": files.project_root(), "pass_fds": locks}
            process = lifeline.start(command, **options)
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
        if code != 0 and goal == "study" and not _interrupted(code, log):
            going_on = [run for run in study if notebooks.can_go_on(run.folder, run.methods)]
            if going_on:
                snakemake(going_on, partial=True)
        return [part.marks() for part in parts] != before, code == 0


def _interrupted(code: int, log: Path) -> bool:
    """Whether Snakemake was ended from outside, so that what is unfinished did not fail: the next call goes on with it."""
    return code < 0 or any(sentence in log.read_text() for sentence in SAID_WHEN_ENDED)


def _command(goal: str, place: Place, study: Sequence[Run], jobs: str, partial: bool) -> list[str]:
    """Snakemake's command line for a goal; StudyError outside of a checkout."""
    root, first = files.project_root(), study[0]
    if not (root / "Snakefile").exists():
        raise StudyError(f"there is no Snakefile at or above {Path.cwd()}: call this inside a checkout of the study")
    values = {
        "task": ",".join(run.task.argument for run in study),
        "profile": first.profile_name,
        "methods": ",".join(first.methods),
        "seeds": len(first.seeds),
        "device": place.device,
        "runs_dir": first.folder.parents[1],
        "root": root,
        "partial": int(partial),
    }
    command = [sys.executable, "-m", "snakemake", goal, "--snakefile", root / "Snakefile", "--nolock"]
    command += ["--directory", first.folder.parent / ".snakemake-work"]
    command += ["--workflow-profile", place.cluster or root / "profiles" / "default"]
    if place.cluster is None:
        command += ["--cores", place.cores, "--resources", f"mem_mb={place.memory}", "gpu=1"]
    if jobs:
        command += ["--slurm-jobname-prefix", jobs]
    return [str(word) for word in (*command, "--config", *(f"{key}={value}" for key, value in values.items()))]
