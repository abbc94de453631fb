"""Kill the study at random moments, let it go on, and compare the bytes it ends with: `survival.py --kills 60 --seed 0`.

Most kills hit a process that runs every stage by itself; some hit `aepo reproduce`, its Snakemake, a papermill or a
kernel. Many kills follow each other on one run folder, which is then finished and compared with an unbroken one.
Ends with a table, and with exit code 1 where anything differs, lingers or holds a lock. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import itertools
import json
import multiprocessing as mp
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
MARK = "AEPO_SURVIVAL"  # an environment variable that every descendant inherits: how lingering processes are found
ROOT = Path(__file__).resolve().parents[1]
TASK, PROFILE = "maze2d-umaze", "smoke"
STAGES = ("collect", "behavior", "critic", "energy", "support", "energy-support", "curve", "evaluation", "returns")
NOTEBOOKS = ("03_dataset", "04_behavior", "05_critic", "06_energy-aepo", "07_evaluation", "08_results")
VICTIMS = {"reproduce": "aepo.cli", "snakemake": "snakemake", "papermill": "papermill", "kernel": "ipykernel_launcher"}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 180.0  # seconds until a process that should do something counts as stuck


@dataclass(frozen=True)
class Kill:
    """What is to be killed, how and when: some time into a stage, inside a write (`torn`), or right after (`placed`)."""

    stage: str
    signal: signal.Signals
    moment: str  # any, torn, placed
    part: float  # of the stage's seconds, or of its writes
    victim: str = "stage"


@dataclass
class Tally:
    """What came of the kills: (victim, stage, signal) of each, and a sentence for each failure."""

    killed: list[tuple[str, str, str]] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


# ---- the work of one process, as the notebooks call it


def work(folder: Path, small: bool, events: Connection, pause: tuple[str, int, str] | None = None) -> None:
    """Every stage of a run in this process; `events` hears of each stage, and of the pause that `pause` asks for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    import torch

    from aepo import datasets, results, runs, settings, stages

    torch.set_num_threads(1)
    if small:
        settings.PROFILES[PROFILE] = tiny(settings.SMOKE)
    methods = ["bc", "best-of-n", "aepo", "aepo-support"] if small else ["bc", "aepo"]
    run = runs.open_run(TASK, [0, 1] if small else [0], methods, PROFILE, "cpu", folder / "runs")
    watch = Watch(events, pause)

    watch.enter("collect")
    datasets.prepare(run.task, PROFILE, run.profile.data, progress=False)
    data = datasets.load(run.task, PROFILE)
    datasets.record(run.folder, data)
    watch.enter("behavior")
    behavior = stages.train_behavior(run, data)
    watch.enter("critic")
    critic = stages.train_critic(run, data)
    watch.enter("energy")
    stages.train_energy(run, data, behavior, critic, "aepo")
    if small:
        watch.enter("support")
        stages.train_support(run, data, behavior, run.profile.energy)
        watch.enter("energy-support")
        stages.train_energy(run, data, behavior, critic, "aepo-support")
    watch.enter("curve")
    results.evaluate_curve(run, data, "aepo")
    watch.enter("evaluation")
    for method in methods:
        results.evaluate(run, method)
    watch.enter("returns")
    results.write_returns(run, data)
    results.merge_results(run)
    watch.enter("end")


def tiny(profile):
    """The smoke profile, smaller: a few seconds in all, with many checkpoints."""
    return replace(
        profile,
        data=replace(profile.data, steps=3_000),
        behavior=replace(profile.behavior, width=32, steps=200, variance_samples=64),
        critic=replace(profile.critic, width=32, steps=200),
        energy=replace(profile.energy, width=32, steps=200),
        evaluation=replace(profile.evaluation, episodes=1, solver_steps=2, curve_betas=(1.0,), curve_steps=60),
        chunk=20,
    )


class Watch:
    """Tells the parent which stage runs, and stops inside or after the write that it asks for until it is killed."""

    def __init__(self, events: Connection, pause: tuple[str, int, str] | None):
        self.events, self.pause, self.armed, self.count = events, pause, False, 0
        self.replace = os.replace
        os.replace = self.place

    def enter(self, stage: str) -> None:
        self.events.send((stage, time.monotonic(), self.count))
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


def stale_locks(folder: Path) -> list[str]:
    """Locks that somebody still holds."""
    held = []
    for path in folder.rglob(".locks/*"):
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(path.name)
    return held


def processes(mark: str) -> dict[int, str]:
    """Living processes (id: command line) whose environment holds the mark; not this one, no zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in entry.joinpath("environ").read_bytes():
                found[int(entry.name)] = entry.joinpath("cmdline").read_text().replace("\0", " ").strip()
    return {pid: line for pid, line in found.items() if pid != os.getpid() and line}


def gone(mark: str, known: set[int] = frozenset(), seconds: float = 15.0) -> dict[int, str]:
    """The marked processes, other than those known, that are still there after a while; empty is well."""
    deadline = time.monotonic() + seconds
    while (left := {p: line for p, line in processes(mark).items() if p not in known}) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def differing(folder: Path, reference: Path, whole: bool) -> list[str]:
    """Files that are not the reference's; those that are missing too where the run is finished (`whole`)."""
    found, expected = contents(folder), contents(reference)
    wrong = [name for name in found if found[name] != expected.get(name) and not name.endswith("manifest.json")]
    if whole:
        wrong += [name for name in expected if found.get(name) != expected[name] and name not in wrong]
        wrong += [f"left over: {name}" for name in leftovers(folder)]
    return wrong + [f"locked: {name}" for name in stale_locks(folder)]


# ---- chains of kills


def start(context, folder: Path, small: bool, pause=None) -> tuple[mp.Process, Connection]:
    """A process that does the work, and the connection that tells where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    here, there = context.Pipe()
    process = context.Process(target=work, args=(folder, small, there, pause))
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


def unbroken(context, folder: Path, small: bool) -> dict[str, tuple[float, int]]:
    """A run that nobody disturbs; seconds and writes of each stage."""
    process, events = start(context, folder, small)
    seen = list(iter(lambda: heard(events), None))
    process.join()
    if process.exitcode or seen[-1][0] != "end":
        raise SystemExit(f"the unbroken run failed: {(folder / 'log.txt').read_text()[-2000:]}")
    pairs = itertools.pairwise(seen)
    return {name: (then - at, more - count) for (name, at, count), (_, then, more) in pairs}


def hit(context, folder: Path, kill: Kill, cost: dict[str, tuple[float, int]]) -> str | None:
    """Start the work, kill it as told; returns the stage that was hit, None where it ended before."""
    seconds, writes = cost[kill.stage]
    pause = None if kill.moment == "any" else (kill.stage, int(kill.part * writes), kill.moment)
    process, events = start(context, folder, True, pause)
    stage = ""
    while (event := heard(events)) is not None:
        if event[0] == "pause":
            break
        stage = event[0]
        if stage == kill.stage and kill.moment == "any":
            time.sleep(kill.part * seconds)
            break
    ended = process.exitcode is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, kill.signal)
    while (event := heard(events)) is not None:
        stage = event[0] if event[0] != "pause" else stage
    process.join(PATIENCE)
    return None if ended or process.exitcode == 0 else stage


def chain(context, folder: Path, reference: Path, kills: Sequence[Kill], cost, mark: str, tally: Tally) -> None:
    """Kill after kill on one run folder, then to its end; every file there is, is the unbroken run's at any time."""
    known, first = set(processes(mark)), len(tally.killed)
    for kill in kills:
        stage = hit(context, folder, kill, cost)
        if stage is None:
            break
        tally.killed.append(("stage process", stage, kill.signal.name))
        wrong = differing(folder, reference, whole=False)
        wrong += [f"lingers: {line}" for line in gone(mark, known).values()]
        tally.same.append(not wrong)
        tally.failures += [f"{folder.name}, {kill.signal.name} in {stage} ({kill.moment}): {w}" for w in wrong]
    process, events = start(context, folder, True)
    while heard(events) is not None:
        pass
    process.join()
    wrong = differing(folder, reference, whole=True) + ["did not finish"] * (process.exitcode != 0)
    settle(folder, wrong, first, tally)


def settle(folder: Path, wrong: Sequence[str], first: int, tally: Tally) -> None:
    """The kills of a chain count as survived where it ended as the unbroken run did; a good folder is removed."""
    if wrong:
        tally.same[first:] = [False] * (len(tally.same) - first)
        log = (folder / "log.txt").read_text()[-1000:]
        tally.failures += [f"{folder.name}, at its end: {w}" for w in wrong] + [f"{folder.name}: {log}"]
    else:
        shutil.rmtree(folder)


def plan(rng: random.Random, kills: int) -> Iterator[list[Kill]]:
    """Chains of up to 12 kills in the order of the stages, all stages and signals in turn."""
    stages = itertools.chain.from_iterable(rng.sample(STAGES, len(STAGES)) for _ in itertools.count())
    signals = itertools.chain.from_iterable(rng.sample(SIGNALS, len(SIGNALS)) for _ in itertools.count())
    while True:
        chosen = sorted(itertools.islice(stages, min(12, kills)), key=STAGES.index)
        moments = rng.choices(("any", "torn", "placed"), (2, 1, 1), k=len(chosen))
        parts = [rng.random() if rng.random() < 0.5 or m == "any" else rng.uniform(0.7, 1) for m in moments]
        yield [Kill(*each) for each in zip(chosen, itertools.islice(signals, len(chosen)), moments, parts, strict=True)]


# ---- parents: `aepo reproduce`, its Snakemake, a papermill, a kernel


def study(folder: Path, mark: str, by_hand: str | None = None) -> subprocess.Popen:
    """`aepo reproduce` on a folder, or papermill on one notebook, in a process of its own."""
    (folder / "runtime").mkdir(parents=True, exist_ok=True)
    more = {MARK: mark, "MINARI_DATASETS_PATH": str(folder / "minari"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime")}
    runs = str(folder / "runs")
    options = ["--task", TASK, "--profile", PROFILE, "--methods", "bc,aepo", "--seeds", "1", "--device", "cpu"]
    command = ["-m", "aepo.cli", "reproduce", *options, "--runs-dir", runs]
    if by_hand:
        name, _, method = by_hand.partition("-")
        values = {"task": TASK, "profile": PROFILE, "seeds": [0], "device": "cpu", "runs_dir": runs}
        values["methods"] = [method] if method else ["bc", "aepo"]
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


def until(what, process: subprocess.Popen, seconds: float = PATIENCE):
    """What `what` returns once it is true; None where the process has ended before."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if process.poll() is not None:
            return None
        if time.monotonic() > deadline:
            raise TimeoutError("nothing happened")
        time.sleep(0.02)
    return found


def hit_parent(folder: Path, mark: str, kill: Kill, by_hand: bool) -> tuple[bool, bool]:
    """Start the study, wait for a notebook, kill the victim; whether it was killed, and whether the study ended well."""
    began, notebook = time.time(), folder / "runs" / PROFILE / TASK / f"{kill.stage}.ipynb"
    process = study(folder, mark, kill.stage if by_hand else None)

    def started() -> bool:
        return notebook.exists() and notebook.stat().st_mtime >= began - 0.01

    def victim() -> int | None:
        lines = processes(mark).items()
        return next((pid for pid, line in lines if f"-m {VICTIMS[kill.victim]}" in line), None)

    pid = None
    if until(started, process):
        time.sleep(kill.part * 6)
        pid = until(victim, process)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kill.signal)
        process.wait(PATIENCE)
    return pid is not None, process.wait(PATIENCE) == 0


def parents(folder: Path, reference: Path, kills: Sequence[Kill], mark: str, tally: Tally, by_hand: bool) -> None:
    """As `chain`, for the processes that start others; `by_hand`: papermill on single notebooks, without Snakemake."""
    first = len(tally.killed)
    for kill in kills:
        killed, finished = hit_parent(folder, mark, kill, by_hand)
        if killed:
            tally.killed.append((kill.victim, kill.stage, kill.signal.name))
            wrong = [f"lingers: {line}" for line in gone(mark).values()] + differing(folder, reference, whole=False)
            tally.same.append(not wrong)
            told = f"{folder.name}, {kill.signal.name} of {kill.victim} in {kill.stage}"
            tally.failures += [f"{told}: {each}" for each in wrong]
        if finished and not by_hand:
            break
    codes = [study(folder, mark, name).wait(600) for name in (NOTEBOOKS if by_hand else [None])]
    wrong = differing(folder, reference, whole=True) + ["did not finish"] * any(codes)
    wrong += [f"lingers: {line}" for line in gone(mark).values()]
    settle(folder, wrong, first, tally)


def plan_parents(rng: random.Random, kills: int, by_hand: bool) -> list[Kill]:
    """Kills in the order of the notebooks: of papermill and kernel, and without `by_hand` of what starts them too."""
    victims = ["papermill", "kernel"] if by_hand else list(VICTIMS)
    pairs = [(v, s) for v in victims for s in SIGNALS if (v, s) != ("kernel", signal.SIGINT)]  # which may be ignored
    chosen = sorted(rng.choices(NOTEBOOKS, k=kills), key=NOTEBOOKS.index)
    turns = rng.sample(pairs, len(pairs)) * (kills // len(pairs) + 1)
    return [Kill(stage, turn[1], "any", rng.random(), turn[0]) for stage, turn in zip(chosen, turns, strict=False)]


# ---- the campaign


def campaign(kills: int, of_parents: int, seed: int, folder: Path) -> Tally:
    """`kills` kills in all, `of_parents` of them of parents; what came of them."""
    rng, mark, tally = random.Random(seed), uuid.uuid4().hex, Tally()
    os.environ[MARK] = mark
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["aepo.results", "aepo.environments", "minari.data_collector.episode_buffer"])
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    if of_parents < kills:
        cost = unbroken(context, folder / "unbroken", True)
        say("unbroken: " + ", ".join(f"{name} {s:.1f} s, {n} writes" for name, (s, n) in cost.items() if name != "end"))
    chains = plan(rng, kills - of_parents)
    for i in itertools.count():
        left = kills - of_parents - len(tally.killed)
        if left <= 0:
            break
        chain(context, folder / f"chain-{i}", folder / "unbroken", next(chains)[:left], cost, mark, tally)
        say(f"{len(tally.killed)} kills, {sum(tally.same)} survived to the same bytes")
    if of_parents:
        unbroken(context, folder / "unbroken-study", False)
    for i in itertools.count():
        left = kills - len(tally.killed)
        if left <= 0:
            break
        by_hand = of_parents < 4 or i % 3 == 2
        batch = plan_parents(rng, min(left, 8), by_hand)
        parents(folder / f"study-{i}", folder / "unbroken-study", batch, uuid.uuid4().hex, tally, by_hand)
        say(f"{len(tally.killed)} kills, {sum(tally.same)} survived to the same bytes")
    return tally


def table(tally: Tally) -> str:
    """One row a victim and stage: kills by signal, and how many ended with the bytes of the unbroken run."""
    order = {name: i for i, name in enumerate((*STAGES, *NOTEBOOKS))}
    rows = collections.defaultdict(collections.Counter)
    for (victim, stage, name), same in zip(tally.killed, tally.same, strict=True):
        for key in ((0, victim, stage), (1, "all", "")):
            rows[key][name] += 1
            rows[key]["same"] += same
    lines = ["| killed | during | SIGKILL | SIGTERM | SIGINT | same bytes |", "|---|---|---|---|---|---|"]
    for key in sorted(rows, key=lambda k: (k[0], k[1] != "stage process", k[1], order.get(k[2], -1))):
        count = rows[key]
        numbers = [count[s.name] for s in SIGNALS]
        lines.append(f"| {key[1]} | {key[2]} | {' | '.join(map(str, numbers))} | {count['same']} of {sum(numbers)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--parents", type=int, help="kills of parents among them; an eighth where not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs lie, kept; a temporary folder where not given")
    options = parser.parse_args()
    of_parents = options.kills // 8 if options.parents is None else min(options.parents, options.kills)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="aepo-survival-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tally = campaign(options.kills, of_parents, options.seed, folder.resolve())
    print(table(tally))
    print(*tally.failures, sep="\n")
    print(f"{sum(tally.same)} of {len(tally.killed)} the same, in {time.monotonic() - started:.0f} s")
    if not options.folder and not tally.failures:
        shutil.rmtree(folder)
    return int(bool(tally.failures) or len(tally.killed) != options.kills)


if __name__ == "__main__":
    sys.exit(main())
