"""`make reproduce`: Snakemake runs the notebooks; what they are doing is told from their files."""

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

import pandas as pd
import typer
import yaml
from tqdm import tqdm

from aepo import files, lifeline, settings
from aepo.files import StudyError, short
from aepo.methods import DATASET
from aepo.study import notebooks
from aepo.study.results import read_returns
from aepo.study.runs import Run
from aepo.study.tables import readable_task_table, task_table

SAID_WHEN_ENDED = ("Will exit after finishing currently running jobs", "Terminating processes on user request")
DID_NOT_END = "did not end (killed, cancelled, out of memory or of disk?)"
STAGES_EVERY = 20.0  # seconds between two lines on the stages at work where there is no terminal
STALE = 600.0  # seconds after which a progress file belongs to a process that is gone


@dataclass(frozen=True)
class Place:
    """Where notebooks run: here, `cores` at a time in `memory` MB (0: all), or on a cluster, a folder of profiles/."""

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
    """The folder of a cluster: profiles/<name>, or a path; None for no name."""
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

    def marks(self) -> dict[str, int]:
        """Notebooks that ran to their end, and when (nanoseconds)."""
        return {name: time for name in self.notebooks if (time := _written(notebooks.mark(self.folder, name)))}

    def failure(self, since: float = 0.0) -> str | None:
        """One sentence on the first notebook that began after `since` (unix time) and did not end, or None."""
        for name in self.notebooks:
            path = self.folder / f"{name}.ipynb"
            open_end = _written(path) > 1e9 * since and not notebooks.mark(self.folder, name).exists()
            if open_end and (said := _stopped(_executed(path))):
                return f"{name} {said}. Executed notebook: {short(path)}"
        return None


def _written(path: Path) -> int:
    """When a file was written (nanoseconds); 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _executed(path: Path) -> dict | None:
    """An executed notebook; None while papermill writes it, or where it was cut off then."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _stopped(notebook: dict | None) -> str | None:
    """How an executed notebook stopped short: with the error of a cell, or DID_NOT_END; None where it did not."""
    if notebook is None:
        return DID_NOT_END
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if output["output_type"] == "error":
            return f"stopped with {output['ename']}: {output['evalue']}"
    return None if notebook["metadata"].get("papermill", {}).get("end_time") else DID_NOT_END


def _stages_at_work(folder: Path) -> Iterator[str]:
    """Where each stage of a run folder stands, as `Progress` wrote it."""
    for path in sorted((folder / "progress").glob("*.txt")):
        with contextlib.suppress(FileNotFoundError):  # it ended just now
            if time.time() - path.stat().st_mtime < STALE:
                yield path.read_text()


class _Changes:
    """Which notebooks have started, ended or failed since the last look, told from when their files were written."""

    def __init__(self, part: Part):
        self.part, self.begun, self.said = part, dict[str, float](), dict[str, str | None]()
        self.stamps = {name: self._stamp(name) for name in part.notebooks}

    def _stamp(self, name: str) -> tuple[int, int]:
        """When its mark and the executed notebook were written."""
        return _written(notebooks.mark(self.part.folder, name)), _written(self.part.folder / f"{name}.ipynb")

    def look(self) -> Iterator[str]:
        """A few words for each change."""
        for name, (marked, executed) in self.stamps.items():
            now, word, path = self._stamp(name), self.said.get(name), self.part.folder / f"{name}.ipynb"
            if word == "done":  # Snakemake sets the time of a mark once more
                continue
            if now[0] > marked:
                word = "done"
            elif now[1] > executed:
                if (notebook := _executed(path)) is None:  # looked at again
                    continue
                self.begun.setdefault(name, time.time())
                word = "started" if _stopped(notebook) in (None, DID_NOT_END) else "failed"
            self.stamps[name] = now
            if word != self.said.get(name):
                self.said[name] = word
                took = tqdm.format_interval(time.time() - self.begun.get(name, time.time()))
                yield f"{name}: {word} in {took}" if word == "done" else f"{name}: {word}"


def watch(parts: Sequence[Part], process: subprocess.Popen, started: float) -> None:
    """Until Snakemake ends: a line when a notebook starts, ends or fails, and where stages stand; clock from `started`."""
    changes, told = {f"{part.folder.name} " if len(parts) > 1 else "": _Changes(part) for part in parts}, time.time()
    total, columns = sum(len(part.notebooks) for part in parts), shutil.get_terminal_size().columns - 1
    with tqdm(bar_format="{desc}", leave=False, disable=None) as line:
        while True:
            over = process.poll() is not None
            for label, each in changes.items():
                for change in each.look():
                    tqdm.write(f"[{tqdm.format_interval(time.time() - started)}] {label}{change}", file=sys.stderr)
            if over:
                return
            at_work = [label + said for label, each in changes.items() for said in _stages_at_work(each.part.folder)]
            text = "   ".join([f"{sum(len(part.marks()) for part in parts)}/{total} notebooks", *at_work])
            line.set_description_str(text[:columns])
            if line.disable and at_work and time.time() - told > STAGES_EVERY:
                told = time.time()
                tqdm.write(f"[{tqdm.format_interval(told - started)}]   {text}", file=sys.stderr)
            time.sleep(0.25)


# ---- a study


@dataclass(frozen=True)
class Work:
    """What Snakemake is asked for: a goal of the Snakefile, for runs of one profile, and the parts that it fills."""

    goal: str
    study: Sequence[Run]
    parts: Sequence[Part]
    place: Place

    @property
    def folder(self) -> Path:
        """runs/<profile>, above all parts."""
        return self.parts[0].folder.parent

    @property
    def names(self) -> list[str]:
        """Of the parts, in one order, so that two processes that lock them cannot wait for each other."""
        return sorted(part.folder.name for part in self.parts)

    @property
    def log(self) -> Path:
        """Snakemake's log: in the folder of the one part that it fills, or in that of the study."""
        if len(self.parts) == 1:
            return self.parts[0].folder / "snakemake.log"
        return self.folder / "study" / f"snakemake-{settings.digest(self.names)[:8]}.log"

    def command(self, study: Sequence[Run], jobs: str, partial: bool) -> list[str]:
        """Snakemake's command line for some of its runs; StudyError outside of a checkout."""
        root, first = files.project_root(), study[0]
        if not (root / "Snakefile").exists():
            remedy = "call this inside a checkout of the study"
            raise StudyError(f"there is no Snakefile at or above {Path.cwd()}: {remedy}")
        values = {
            "task": ",".join(run.task.argument for run in study),
            "profile": first.profile_name,
            "methods": ",".join(first.methods),
            "seeds": len(first.seeds),
            "device": self.place.device,
            "runs_dir": self.folder.parent,
            "root": root,
            "partial": int(partial),
        }
        command = [sys.executable, "-m", "snakemake", self.goal, "--snakefile", root / "Snakefile", "--nolock"]
        command += ["--directory", self.folder / ".snakemake-work", *self.place.options()]
        command += ["--slurm-jobname-prefix", jobs] if jobs else []
        return [str(word) for word in (*command, "--config", *(f"{key}={value}" for key, value in values.items()))]

    def failure(self, since: float) -> str:
        """What the one part failed with; of many, a red line each is printed before."""
        tail = [line for line in self.log.read_text().splitlines() if line.strip()][-1:]
        otherwise = f"not all of its notebooks ran; Snakemake's log {short(self.log)} ends with: {' '.join(tail)}"
        unfinished = [part for part in self.parts if len(part.marks()) < len(part.notebooks)]
        failed = {part.folder.name: part.failure(since) or otherwise for part in unfinished}
        if len(self.parts) == 1:
            return next(iter(failed.values()), otherwise)
        for name, sentence in failed.items():
            typer.secho(f"{name}: {sentence}", fg="red", err=True)
        count = f"{len(failed)} of {len(self.parts)} tasks failed ({', '.join(failed)})"
        return f"{count}, what they do not need is finished; Snakemake's log: {short(self.log)}"


def reproduce(study: Sequence[Run], place: Place) -> None:
    """Bring the runs of a study to their end and print their table; StudyError says at the end what failed."""
    parts = [Part(run.folder, tuple(notebooks.of_methods(notebooks.STUDY, run.methods))) for run in study]
    failed = bring_to_end(Work("study", study, parts, place))
    if len(study) > 1 or "08_results" in parts[0].marks():
        print_study(study)
    if failed:
        raise StudyError(failed)


def without_task(run: Run, cores: int, goal: str) -> None:
    """Run the notebooks that need no task: `theory` (01, 02), or `performance` (10), whose times are always taken anew."""
    names = {"theory": notebooks.THEORY, "performance": notebooks.PERFORMANCE}[goal]
    part = Part(run.folder.parent / "theory", names)
    if goal == "performance":
        notebooks.mark(part.folder, names[0]).unlink(missing_ok=True)
    if failed := bring_to_end(Work(goal, [run], [part], Place(cores, 0, run.device))):
        raise StudyError(failed)
    drawn = run.figures.parent / "theory"
    print_figures([path for name in names for path in sorted(drawn.glob(f"{name[:2]}_*.png"))])
    print(f"Executed notebooks: {short(part.folder)}")


def bring_to_end(work: Work) -> str | None:
    """Let Snakemake do what is left to do, and say so where that is nothing; returns what failed, or None."""
    work.log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with contextlib.ExitStack() as held:
        locks = [held.enter_context(files.lock(work.folder, f"reproduce-{name}")) for name in work.names]
        output = held.enter_context(open(work.log, "w"))
        for part in work.parts:
            shutil.rmtree(part.folder / "progress", ignore_errors=True)
        before, jobs = [part.marks() for part in work.parts], work.place.slurm_prefix(work.folder, work.names)
        cancel(jobs)  # those of a call that was killed
        if jobs:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that an end by SIGTERM cancels them too

        def snakemake(study: Sequence[Run], partial: bool = False) -> int:
            options = {"stdout": output, "stderr": subprocess.STDOUT, "cwd": files.project_root(), "pass_fds": locks}
            process = lifeline.start(work.command(study, jobs, partial), **options)
            try:
                watch(work.parts, process, started)
            except BaseException:
                lifeline.stop(process)  # before its jobs are cancelled, which it would submit again
                cancel(jobs)
                raise
            finally:
                lifeline.stop(process)
            return process.returncode

        code = snakemake(work.study)
        # Where Snakemake was ended from outside, what is unfinished did not fail: the next call goes on with it.
        interrupted = code < 0 or any(sentence in work.log.read_text() for sentence in SAID_WHEN_ENDED)
        going_on = [run for run in work.study if notebooks.can_go_on(run.folder, run.methods)]
        if code != 0 and going_on and work.goal == "study" and not interrupted:
            snakemake(going_on, partial=True)
        if code != 0:
            return work.failure(started)
        if [part.marks() for part in work.parts] == before:
            names = ", ".join(part.folder.name for part in work.parts)
            print(f"Nothing to do: every notebook of {names} in {short(work.folder)} is up to date.")
        return None


def table(folder: Path) -> str:
    """The table of results of one run: last checkpoint, means over seeds and episodes, 95% bootstrap intervals."""
    shown = readable_task_table(task_table(read_returns(folder / "returns.csv")))
    head = f"{folder.name} ({folder.parent.name}): last checkpoint, mean and 95% bootstrap interval over seeds and episodes"
    return f"\n{head}\n{shown.to_string(index=False)}\n"


def print_figures(paths: Sequence[Path]) -> None:
    """Where figures are, one a line."""
    print("Figures:", *map(short, paths), sep="\n  ")


def print_study(study: Sequence[Run]) -> None:
    """The table of one run, or tasks down and methods across; what is missing, and where the files are."""
    first, means, missing = study[0], {}, []
    for run in study:
        path = run.folder / "returns.csv"
        rows = read_returns(path) if path.exists() else pd.DataFrame(columns=["method", "variant", "return", "score"])
        rows = rows[(rows["variant"] == "") & (rows["method"] != DATASET)]
        mean = rows.groupby("method")[["return", "score"]].mean()
        means[run.task.name] = mean["score"].fillna(mean["return"]).map("{:.1f}".format)
        if lacking := [m for m in run.methods if m not in mean.index and (run.task.env_id or not path.exists())]:
            missing.append(f"missing: {run.task.name}: {', '.join(lacking)}\n")
    if len(study) == 1:
        print(table(first.folder))
        print(*missing, sep="", end="")
        print_figures(sorted(first.figures.glob("*.png")))
        print(f"Executed notebooks, networks, manifest, all episodes (returns.csv): {short(first.folder)}")
        return
    print(f"\n{first.profile_name}: mean score of the last checkpoint (mean return where a task has no score)")
    scores = pd.DataFrame(means, dtype=object).T.reindex(columns=first.methods).fillna("-")
    print(scores.to_string(), end="\n\n")
    print(*missing, sep="", end="")
    networks, figures = short(first.folder.parent), short(first.figures.parent)
    print(f"Executed notebooks, networks, manifests: {networks}   figures: {figures}")
