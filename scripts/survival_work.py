"""What `survival.py` kills, every stage in one process or the study, and what it looks at: files, processes, locks."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

MARK = "AEPO_SURVIVAL"  # an environment variable that every descendant inherits: how lingering processes are found
ROOT = Path(__file__).resolve().parents[1]
TASK, PROFILE = "maze2d-umaze", "smoke"
PATIENCE = 1_200.0  # seconds until a process that should do something counts as stuck


def work(folder: Path, small: bool, events: Connection, pause=None, last: str = "") -> None:
    """Every stage of a run in this process, or until `last` has begun; `events` hears of each, and of a `pause`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    import torch

    from aepo import settings
    from aepo.data import collect, datasets, tasks
    from aepo.study import evaluation, results, runs, stages

    torch.set_num_threads(1)
    if small:
        settings.PROFILES[PROFILE] = tiny(settings.SMOKE)
        tasks.TASKS[TASK] = replace(tasks.TASKS[TASK], horizon=60)
        collect.reference_scores = lambda *_: (0.0, 60.0, "not measured: it takes longest")
    methods = ["bc", "best-of-n", "aepo", "aepo-support", "qipo"] if small else ["bc", "aepo", "iql"]
    run = runs.open_run(TASK, [0, 1] if small else [0], methods, PROFILE, "cpu", folder / "runs")
    watch = Watch(events, pause, last)

    watch.enter("collect")
    datasets.prepare(run.task, PROFILE, run.profile.data)
    data = datasets.load(run.task, PROFILE)
    runs.record_data(run.folder, data)
    watch.enter("behavior")
    behavior = stages.train_behavior(run, data)
    watch.enter("critic")
    critic = stages.train_critic(run, data)
    watch.enter("energy")
    stages.train_energy(run, data, behavior, critic, "aepo")
    if small:
        watch.enter("support")
        stages.train_support(run, data, behavior)
        watch.enter("energy-support")
        stages.train_energy(run, data, behavior, critic, "aepo-support")
    watch.enter("policy")
    stages.train_policy(run, data, behavior, critic, methods[-1])
    watch.enter("scale")
    evaluation.guidance_of(run, "aepo")
    watch.enter("curve")
    evaluation.evaluate_curve(run, "aepo")
    watch.enter("evaluation")
    for method in methods:
        evaluation.evaluate(run, method)
    watch.enter("returns")
    results.write_returns(run, data)
    results.merge_results(run)
    watch.enter("end")


def tiny(profile):
    """The smoke profile, smaller: a few seconds in all, with ten checkpoints a stage."""
    return replace(
        profile,
        data=replace(profile.data, steps=1_000),
        behavior=replace(profile.behavior, width=32, steps=200, variance_samples=64),
        critic=replace(profile.critic, width=32, steps=200, discount=0.98),
        energy=replace(profile.energy, width=32, steps=200),
        policy=replace(profile.policy, width=32, steps=160),
        evaluation=replace(profile.evaluation, episodes=1, solver_steps=2),
        chunk=20,
    )


class Watch:
    """Tells the parent which stage runs, and stops inside or after the write that it asks for until it is killed."""

    def __init__(self, events: Connection, pause: tuple[str, int, str] | None, last: str):
        self.events, self.pause, self.last, self.armed, self.count = events, pause, last, False, 0
        self.replace = os.replace
        os.replace = self.place

    def enter(self, stage: str) -> None:
        self.events.send((stage, time.monotonic(), self.count))
        if stage == self.last:
            raise SystemExit
        self.armed = self.armed or bool(self.pause and self.pause[0] == stage)

    def place(self, source, target) -> None:
        """In place of os.replace, by which every file of a run is put in place."""
        if "progress" in Path(target).parts:
            return self.replace(source, target)
        self.count += 1
        stops = self.armed and self.pause[1] <= 0
        if self.armed:
            self.pause = (self.pause[0], self.pause[1] - 1, self.pause[2])
        if stops and self.pause[2] == "torn":
            if Path(source).is_file():
                os.truncate(source, Path(source).stat().st_size // 2)
            self.stop()
        self.replace(source, target)
        if stops:
            self.stop()

    def stop(self) -> None:
        self.events.send(("pause", 0.0, 0))
        time.sleep(PATIENCE)
        raise SystemExit("was not killed")


# ---- what is left on disk, in /proc and in locks


def contents(folder: Path) -> dict[str, bytes]:
    """Everything a run folder ends with, but what tells of its making: logs, executed notebooks, seconds, caches."""
    kept = {}
    for path in sorted([*folder.glob("runs/**/*"), *folder.glob("minari/**/main_data.hdf5")]):
        name = str(path.relative_to(folder))
        parts = path.relative_to(folder).parts
        passing = any(part.startswith(".") or part in ("checkpoints", "progress") for part in parts)
        if path.is_file() and not passing and path.suffix in (".safetensors", ".json", ".csv", ".parquet", ".hdf5"):
            kept[name] = manifest(path) if path.name == "manifest.json" else path.read_bytes()
    return kept


def manifest(path: Path) -> bytes:
    """A manifest without how long things took, and without the commit, which may change beside a campaign."""

    def timeless(value):
        return (
            {k: timeless(v) for k, v in value.items() if k not in ("seconds", "git_commit")}
            if isinstance(value, dict)
            else value
        )

    return json.dumps(timeless(json.loads(path.read_text())), sort_keys=True).encode()


def leftovers(folder: Path) -> list[str]:
    """Temporary files, checkpoints and staging folders that a finished run should not have."""
    found = [*folder.rglob(".*.tmp"), *folder.rglob("checkpoints/*"), *folder.rglob(".staging-*")]
    return [str(path.relative_to(folder)) for path in found]


def stale_locks(folder: Path, seconds: float = 10.0) -> list[str]:
    """Locks that somebody still holds after a while: a dying process gives up its memory before its files."""
    deadline = time.monotonic() + seconds
    while (held := [path.name for path in folder.rglob(".locks/*") if _held(path)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


def _held(path: Path) -> bool:
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def processes(mark: str) -> dict[int, str]:
    """Living processes (id: command line) whose environment holds the mark; not this one, no zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in entry.joinpath("environ").read_bytes():
                found[int(entry.name)] = entry.joinpath("cmdline").read_text().replace("\0", " ").strip()
    return {pid: line for pid, line in found.items() if pid != os.getpid() and line}


def gone(mark: str, known: set[int] = frozenset(), seconds: float = 60.0) -> dict[int, str]:
    """The marked processes, other than those known, that are still there after a while; empty is well."""
    deadline = time.monotonic() + seconds
    while (left := {p: line for p, line in processes(mark).items() if p not in known}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def differing(folder: Path, reference: Path, whole: bool, locks: bool = True) -> list[str]:
    """Files that are not the reference's, those that are missing where the run is finished (`whole`), held locks."""
    found, expected = contents(folder), contents(reference)
    wrong = [name for name in found if found[name] != expected.get(name) and not name.endswith("manifest.json")]
    if whole:
        wrong += [name for name in expected if found.get(name) != expected[name] and name not in wrong]
        wrong += [f"left over: {name}" for name in leftovers(folder)]
    return wrong + [f"locked: {name}" for name in (stale_locks(folder) if locks else ())]


# ---- processes


def start(context, folder: Path, small: bool, pause=None, last: str = "") -> tuple[mp.Process, Connection]:
    """A process that does the work, and the connection that tells where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    here, there = context.Pipe()
    process = context.Process(target=work, args=(folder, small, there, pause, last))
    process.start()
    there.close()
    return process, here


def heard(events: Connection, seconds: float = PATIENCE) -> tuple[str, float, int] | None:
    """The next event; None where the process has ended, TimeoutError where it does not go on."""
    if not events.poll(seconds):
        raise TimeoutError("nothing happened")
    try:
        return events.recv()
    except (EOFError, ConnectionResetError):
        return None


def unbroken(context, folder: Path, small: bool, last: str = "end") -> dict[str, tuple[float, int]]:
    """A run that nobody disturbs; seconds and writes of each stage."""
    process, events = start(context, folder, small, last=last)
    seen = list(iter(lambda: heard(events), None))
    process.join()
    if process.exitcode or seen[-1][0] != last:
        raise SystemExit(f"the unbroken run failed: {(folder / 'log.txt').read_text()[-2000:]}")
    pairs = itertools.pairwise(seen)
    return {name: (then - at, more - count) for (name, at, count), (_, then, more) in pairs}


def study(folder: Path, mark: str, by_hand: str | None = None) -> subprocess.Popen:
    """`aepo reproduce` on a folder, or papermill on one notebook, in a process of its own."""
    (folder / "runtime").mkdir(parents=True, exist_ok=True)
    more = {MARK: mark, "MINARI_DATASETS_PATH": str(folder / "minari"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    runs = str(folder / "runs")
    options = ["--task", TASK, "--profile", PROFILE, "--methods", "bc,aepo,iql", "--seeds", "1", "--device", "cpu"]
    command = ["-m", "aepo.cli", "reproduce", *options, "--runs-dir", runs]
    if by_hand:
        name, _, method = by_hand.partition("-")
        values = {"task": TASK, "profile": PROFILE, "seeds": [0], "device": "cpu", "runs_dir": runs}
        values["methods"] = [method] if method else ["bc", "aepo", "iql"]
        out = folder / "runs" / PROFILE / TASK / f"{by_hand}.ipynb"
        out.parent.mkdir(parents=True, exist_ok=True)
        command = [
            "-m",
            "papermill",
            "--no-progress-bar",
            f"notebooks/{name}.ipynb",
            str(out),
            "-y",
            json.dumps(values),
        ]
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | more,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs start with it ignored
        )
