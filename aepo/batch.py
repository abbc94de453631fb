"""`make reproduce`: Snakemake runs the notebooks, here or on a cluster; what they are doing is told from their files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml
from tqdm import tqdm

from aepo import files, lifeline, settings
from aepo.files import StudyError, short
from aepo.study import notebooks, summary
from aepo.study.runs import Run

SAID_WHEN_ENDED = ("Will exit after finishing currently running jobs", "Terminating processes on user request")
DID_NOT_END = "did not end (killed, cancelled, out of memory or of disk?)"
STAGES_EVERY = 20.0  # seconds between two lines on the stages at work where there is no terminal
STALE = 600.0  # seconds after which a progress file belongs to a process that is gone


@dataclass(frozen=True)
class Place:
    """Where notebooks run: here, `cores` of them at a time in `memory` MB, or on a cluster, a folder like profiles/slurm.

    `device`: what they are asked to use; `auto` is decided where they run. 0 cores or MB: all that there are.
    """

    cores: int
    memory: int
    device: str
    cluster: Path | None = None

    def options(self) -> list:
        """Snakemake's options for it."""
        if self.cluster:
            return ["--workflow-profile", self.cluster]
        memory = self.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        own = ["--cores", self.cores or os.cpu_count() or 1, "--resources", f"mem_mb={memory}", "gpu=1"]
        return ["--workflow-profile", files.project_root() / "profiles" / "default", *own]

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


# ---- what notebooks are doing


@dataclass(frozen=True)
class Part:
    """A folder that Snakemake fills, a task's or the theory's, and the notebooks that it runs there."""

    folder: Path
    notebooks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name: the task's."""
        return self.folder.name

    def executed(self, notebook: str) -> Path:
        """Where an executed notebook is."""
        return self.folder / f"{notebook}.ipynb"

    def marks(self) -> dict[str, int]:
        """Notebooks that ran to their end, and when (nanoseconds)."""
        times = {name: _written(notebooks.mark(self.folder, name)) for name in self.notebooks}
        return {name: time for name, time in times.items() if time}

    def failure(self, since: float = 0.0) -> str | None:
        """One sentence on the first notebook that began after `since` (unix time) and did not end, or None."""
        done = self.marks()
        for name in self.notebooks:
            path = self.executed(name)
            if name not in done and _written(path) > 1e9 * since and (said := _stopped(path)):
                return f"{name} {said}. Executed notebook: {short(path)}"
        return None


def _written(path: Path) -> int:
    """When a file was written (nanoseconds); 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _stopped(path: Path) -> str | None:
    """How an executed notebook stopped short: with the error of a cell, or DID_NOT_END; None where it did not."""
    try:
        notebook = json.loads(path.read_text())
    except (OSError, ValueError):  # papermill was cut off while it wrote
        return DID_NOT_END
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                return f"stopped with {output['ename']}: {output['evalue']}"
    return None if notebook["metadata"].get("papermill", {}).get("end_time") else DID_NOT_END


def _clock(seconds: float) -> str:
    """Minutes and seconds as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _stages_at_work(folder: Path) -> Iterator[str]:
    """Where each stage of a run folder stands: units done, units a second, time left."""
    for path in sorted((folder / "progress").glob("*.json")):
        if time.time() - _written(path) / 1e9 > STALE:
            continue
        try:
            bar = json.loads(path.read_text())
        except FileNotFoundError:  # it ended just now
            continue
        rate = (bar["n"] - bar["initial"]) / bar["elapsed"] if bar["elapsed"] else 0.0
        left = f", {_clock((bar['total'] - bar['n']) / rate)} left" if rate else ""
        yield f"{path.stem} {bar['n']:,}/{bar['total']:,} {bar['unit']}s, {rate:.0f}/s{left}"


class _Changes:
    """Which notebooks have started, ended or failed since the last look, told from when their files were written."""

    def __init__(self, part: Part):
        self.part, self.begun, self.said = part, {}, {}
        self.stamps = {name: self._stamp(name) for name in part.notebooks}

    def _stamp(self, name: str) -> tuple[int, int]:
        """When its mark and the executed notebook were written."""
        return _written(notebooks.mark(self.part.folder, name)), _written(self.part.executed(name))

    def look(self) -> Iterator[str]:
        """A few words for each change."""
        for name, (marked, executed) in self.stamps.items():
            now = self.stamps[name] = self._stamp(name)
            if now[0] > marked and self.said.get(name) != "done":  # Snakemake sets the time of a mark once more
                self.said[name] = "done"
                yield f"{name}: done in {_clock(time.time() - self.begun.get(name, time.time()))}"
            elif now[1] > executed and self.said.get(name) != "done":
                self.begun.setdefault(name, time.time())
                text = self.part.executed(name).read_text(errors="replace")
                word = "failed" if '"exception": true' in text else "started"
                if self.said.get(name) != word:
                    yield f"{name}: {word}"
                self.said[name] = word


def watch(parts: Sequence[Part], process: subprocess.Popen, started: float) -> None:
    """Until Snakemake ends: a line when a notebook starts, ends or fails, and where the stages stand.

    Times count from `started` (unix time). In a terminal the stages are one line that is rewritten.
    """
    changes, told = [_Changes(part) for part in parts], time.time()
    labels = [f"{part.name} " if len(parts) > 1 else "" for part in parts]
    total, columns = sum(len(part.notebooks) for part in parts), shutil.get_terminal_size().columns - 1
    with tqdm(bar_format="{desc}", leave=False, disable=None) as line:
        while True:
            over = process.poll() is not None
            for label, each in zip(labels, changes, strict=True):
                for change in each.look():
                    tqdm.write(f"[{_clock(time.time() - started)}] {label}{change}", file=sys.stderr)
            if over:
                return
            done = sum(len(part.marks()) for part in parts)
            at_work = [
                label + s for label, part in zip(labels, parts, strict=True) for s in _stages_at_work(part.folder)
            ]
            text = "   ".join([f"{done}/{total} notebooks", *at_work])
            line.set_description_str(text[:columns])
            if line.disable and at_work and time.time() - told > STAGES_EVERY:
                told = time.time()
                tqdm.write(f"[{_clock(told - started)}]   {text}", file=sys.stderr)
            time.sleep(0.25)


# ---- a study


def reproduce(study: Sequence[Run], place: Place) -> None:
    """Bring the runs of a study to their end and print their table: what is finished is not done again.

    What fails does not keep the rest from going on: StudyError says at the end what it was.
    """
    started = time.time()
    parts = [Part(run.folder, tuple(notebooks.of_methods(notebooks.STUDY, run.methods))) for run in study]
    ran, well = _bring_to_end(study, parts, "study", place)
    _say_nothing_to_do(parts, ran or not well)
    if len(study) > 1 or "08_results" in parts[0].marks():
        summary.print_study(study)
    _tell_failed(parts, well, started)


def without_task(run: Run, cores: int, goal: str) -> None:
    """Run the notebooks that need no task: `theory` (01, 02), or `performance` (10), whose times are always taken anew."""
    names = {"theory": notebooks.THEORY, "performance": notebooks.PERFORMANCE}[goal]
    part, started = Part(run.folder.parent / "theory", names), time.time()
    if goal == "performance":
        notebooks.mark(part.folder, names[0]).unlink(missing_ok=True)
    ran, well = _bring_to_end([run], [part], goal, Place(cores, 0, run.device))
    _say_nothing_to_do([part], ran or not well)
    _tell_failed([part], well, started)
    drawn = run.figures.parent / "theory"
    summary.print_figures([path for name in names for path in sorted(drawn.glob(f"{name[:2]}_*.png"))])
    print(f"Executed notebooks: {short(part.folder)}")


def _say_nothing_to_do(parts: Sequence[Part], done: bool) -> None:
    if not done:
        names, above = ", ".join(part.name for part in parts), short(parts[0].folder.parent)
        print(f"Nothing to do: every notebook of {names} in {above} is up to date.")


def _tell_failed(parts: Sequence[Part], well: bool, started: float) -> None:
    """StudyError with what the one part failed with; of many, a red line each before it."""
    if well:
        return
    log = _log(parts)
    tail = [line for line in log.read_text().splitlines() if line.strip()][-1:]
    otherwise = f"not all of its notebooks ran; Snakemake's log {short(log)} ends with: {' '.join(tail)}"
    unfinished = [part for part in parts if len(part.marks()) < len(part.notebooks)]
    failed = {part.name: part.failure(started) or otherwise for part in unfinished}
    if len(parts) == 1:
        raise StudyError(failed.get(parts[0].name, otherwise))
    for name, sentence in failed.items():
        typer.secho(f"{name}: {sentence}", fg="red", err=True)
    raise StudyError(
        f"{len(failed)} of {len(parts)} tasks failed ({', '.join(failed)}), what they do not need is finished; "
        f"Snakemake's log: {short(log)}"
    )


def _log(parts: Sequence[Part]) -> Path:
    """Snakemake's log: in the folder of the one part that it fills, or in that of the study."""
    if len(parts) == 1:
        return parts[0].folder / "snakemake.log"
    names = sorted(part.name for part in parts)
    return parts[0].folder.parent / "study" / f"snakemake-{settings.digest(names)[:8]}.log"


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
        before, jobs, started = [part.marks() for part in parts], place.slurm_prefix(workdir, names), time.time()
        cancel(jobs)  # those of a call that was killed
        if jobs:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an end by SIGTERM cancels them too

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
        # Where Snakemake was ended from outside, what is unfinished did not fail: the next call goes on with it.
        interrupted = code < 0 or any(sentence in log.read_text() for sentence in SAID_WHEN_ENDED)
        if code != 0 and goal == "study" and not interrupted:
            going_on = [run for run in study if notebooks.can_go_on(run.folder, run.methods)]
            if going_on:
                snakemake(going_on, partial=True)
        return [part.marks() for part in parts] != before, code == 0


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
    command += ["--directory", first.folder.parent / ".snakemake-work", *place.options()]
    command += ["--slurm-jobname-prefix", jobs] if jobs else []
    return [str(word) for word in (*command, "--config", *(f"{key}={value}" for key, value in values.items()))]
