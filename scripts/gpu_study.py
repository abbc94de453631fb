"""One task of the study for scripts/gpu.py: data, training and evaluation, each method's episodes written as they come.

python scripts/gpu_study.py TASK --output DIR [--collect]: rows of DIR/results.csv (as runs/results.csv has them) and of
DIR/seconds.csv: what was done, its steps and seconds, and how many of these were spent in environments and checkpoints.
"""

import argparse
import csv
import functools
import os
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from aepo import files, settings
from aepo.core.models import Behavior
from aepo.data import datasets
from aepo.data.datasets import Dataset
from aepo.learners.checkpoints import Checkpoints
from aepo.study import evaluation, results, runs, stages

COLUMNS = ("task", "profile", "what", "steps", "seconds", "environment_s", "checkpoints_s", "device", "torch")


class Clock:
    """Seconds and calls of functions, by name, since they were last asked for."""

    def __init__(self):
        self.seconds, self.calls = {}, {}

    def watch(self, name: str, owner: type, method: str) -> None:
        """Time a method of a class from now on; what it does stays the same."""
        function = getattr(owner, method)

        @functools.wraps(function)
        def timed(*args, **more):
            start = time.perf_counter()
            try:
                return function(*args, **more)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                self.calls[name] = self.calls.get(name, 0) + (len(args[1]) if name == "environment" else 1)

        setattr(owner, method, timed)

    def take(self, name: str) -> tuple[float, int]:
        """Seconds and calls of one name, which begin anew."""
        return self.seconds.pop(name, 0.0), self.calls.pop(name, 0)


class Seconds:
    """seconds.csv, a row at a time."""

    def __init__(self, path: Path, clock: Clock, **same: str):
        self.path, self.clock, self.same = path, clock, same

    def timed(self, what: str, work: Callable[[], object], steps: Callable[[], int] = lambda: 0) -> object:
        """Do some work; write and print what it took. `steps` is asked afterwards, 0: as many as environments made."""
        start = time.perf_counter()
        made = work()
        took = time.perf_counter() - start
        (environment, played), (saving, _) = self.clock.take("environment"), self.clock.take("checkpoints")
        count = steps() or played
        numbers = {"seconds": took, "environment_s": environment, "checkpoints_s": saving}
        row = {**self.same, "what": what, "steps": count, **{key: f"{value:.2f}" for key, value in numbers.items()}}
        begun = self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if not begun:
                writer.writeheader()
            writer.writerow(row)
        rate = f", {played / environment:.0f} environment steps a second" if environment else ""
        parts = f" (environments {environment:.1f}, checkpoints {saving:.1f}{rate})" if environment or saving else ""
        print(f"{self.same['task']}: {what}: {took:.1f} s, {count} steps{parts}", flush=True)
        return made


def _study_results(run: runs.Run) -> Path:
    return runs.results_path(run.folder.parents[1], run.profile_name)


def study(run: runs.Run, seconds: Seconds, output: Path, until: float) -> list[str]:
    """Train and evaluate the run's methods one after another; those that failed.

    None begins after `until`, in seconds since the epoch.
    """
    data = seconds.timed("load", lambda: datasets.load(run.task, run.profile_name))
    runs.record_data(run.folder, data)
    trained = lambda: sum(made["steps"] for made in runs.read_manifest(run.folder).get("stages", {}).values())  # noqa: E731
    before = trained()
    behavior = seconds.timed("behavior", lambda: stages.train_behavior(run, data), lambda: trained() - before)
    failed = []
    for number, method in enumerate(run.methods):
        if time.time() > until:
            print(f"{run.task.name}: stopped before {', '.join(run.methods[number:])}", flush=True)
            break
        try:
            _method(replace(run, methods=(method,)), data, behavior, seconds, trained, output)
        except Exception:
            print(f"{run.task.name}: {method} failed:\n{traceback.format_exc()}", flush=True)
            failed.append(method)
    return failed


def _method(
    run: runs.Run, data: Dataset, behavior: Behavior, seconds: Seconds, trained: Callable, output: Path
) -> None:
    """Train and evaluate the one method of a run; its episodes at once into results.csv."""
    (method,), before = run.methods, trained()
    train = functools.partial(stages.train_method, run, data, behavior, method)
    seconds.timed(f"train {method}", train, lambda: trained() - before)
    rows = seconds.timed(f"evaluate {method}", lambda: results.write_returns(run, data))
    results.merge_results(run)
    shutil.copyfile(_study_results(run), output / "results.csv")
    scores = rows[rows["method"] == method].groupby("seed")[["return", "score"]].mean().round(1)
    of_seeds = ", ".join(f"{row['return']} ({row['score']})" for _, row in scores.iterrows())
    print(f"{run.task.name}: {method}: return (score) of each seed: {of_seeds}", flush=True)


def main() -> None:
    """Collect a task's data, or also train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--collect", action="store_true", help="make its data, nothing else")
    parser.add_argument("--methods", nargs="+", default=["bc-low-noise"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20, help="of each seed, in place of the profile's number")
    parser.add_argument("--profile", default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--runs-dir", default=".test/gpu/runs")
    parser.add_argument("--until", type=float, default=float("inf"), help="time after which no method begins")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    given = parser.parse_args()
    settings.PROFILES[given.profile] = settings.changed(
        settings.get(given.profile), {"evaluation": {"episodes": given.episodes}}
    )
    given.output.mkdir(parents=True, exist_ok=True)
    run = runs.open_run(given.task, range(given.seeds), given.methods, given.profile, given.device, given.runs_dir)
    device = torch.cuda.get_device_name() if run.device == "cuda" else f"cpu, {os.cpu_count()} cores"
    clock = Clock()
    clock.watch("environment", evaluation.Copies, "step")
    clock.watch("checkpoints", Checkpoints, "save")
    same = {"task": run.task.name, "profile": given.profile, "device": device, "torch": torch.__version__}
    seconds = Seconds(given.output / "seconds.csv", clock, **same)
    files.datasets_root()
    prepare = lambda: datasets.prepare(run.task, given.profile, run.profile.data)  # noqa: E731
    if given.collect:
        seconds.timed("collect", prepare, lambda: run.profile.data.steps)
        seconds.timed("load, first", lambda: datasets.load(run.task, given.profile))
        return
    prepare()
    if (given.output / "results.csv").exists() and not _study_results(run).exists():
        shutil.copyfile(given.output / "results.csv", _study_results(run))  # of an earlier visit
    if failed := study(run, seconds, given.output, given.until):
        raise SystemExit(f"{run.task.name}: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
