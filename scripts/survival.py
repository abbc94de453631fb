"""Kill the study at random moments, let it go on, and compare the bytes it ends with: `survival.py --kills 60 --seed 0`.

Most kills hit a process that runs every stage by itself; some hit `aepo reproduce`, its Snakemake, a papermill or a
kernel. Many kills follow each other on one run folder, which is then finished and compared with an unbroken one; two
processes at once on one folder are tried as well. Ends with a table, and with exit code 1 where anything differs,
lingers or holds a lock. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import multiprocessing as mp
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from survival_work import MARK, PATIENCE, PROFILE, TASK, differing, gone, heard, processes, start, study, unbroken

os.environ["OMP_NUM_THREADS"] = "1"
STAGES = ("collect", "behavior", "critic", "energy", "support", "energy-support", "policy", "scale")
STAGES += ("curve", "evaluation", "returns")
NOTEBOOKS = ("03_dataset", "04_behavior", "05_critic", "06_energy-aepo", "06_policy-iql", "07_evaluation", "08_results")
VICTIMS = {  # by how their command lines look
    "reproduce": r"^\S+ -m aepo\.cli reproduce",
    "lifeline": r"lifeline\.py",
    "snakemake": r"^\S+ -m snakemake",
    "papermill": r"^\S+ (-m papermill|scripts/run_papermill)",
    "kernel": r"^\S+ -m ipykernel_launcher",
}
ABOVE = ("reproduce", "lifeline", "snakemake")  # with these the study ends; papermill and kernel are tried again
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


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

    def add(self, victim: str, stage: str, kill: Kill, wrong: Sequence[str], folder: Path) -> None:
        """Note a kill and what was wrong right after it, and say so."""
        self.killed.append((victim, stage, kill.signal.name))
        self.same.append(not wrong)
        told = f"{folder.name}, {kill.signal.name} of {victim} in {stage} ({kill.moment})"
        self.failures += [f"{told}: {each}" for each in wrong]
        print(f"  {len(self.killed)}. {told}", flush=True)


# ---- chains of kills


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
        wrong = differing(folder, reference, whole=False)
        wrong += [f"lingers: {line}" for line in gone(mark, known).values()]
        tally.add("stage process", stage, kill, wrong, folder)
    process, events = start(context, folder, True)
    while heard(events) is not None:
        pass
    process.join()
    wrong = differing(folder, reference, whole=True) + ["did not finish"] * (process.exitcode != 0)
    settle(folder, wrong, first, tally)


def pair(context, folder: Path, reference: Path, tally: Tally) -> None:
    """Two processes on one run folder at once: one waits for the other, both end well, with the unbroken run's bytes."""
    both = [start(context, folder, True) for _ in range(2)]
    for process, events in both:
        while heard(events) is not None:
            pass
        process.join()
    wrong = differing(folder, reference, whole=True) + ["failed"] * any(process.exitcode for process, _ in both)
    wrong += ["nobody waited"] * ("another process works on" not in (folder / "log.txt").read_text())
    settle(folder, wrong, len(tally.killed), tally)


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


def hit_parent(process: subprocess.Popen, folder: Path, mark: str, kill: Kill, began: float) -> bool:
    """Wait for a notebook of a study that began at `began`, kill the victim; False where the study ended before."""
    notebook = folder / "runs" / PROFILE / TASK / f"{kill.stage}.ipynb"

    def started() -> bool:
        return notebook.exists() and notebook.stat().st_mtime >= began - 0.01

    def victim() -> int | None:
        lines = processes(mark).items()
        return next((pid for pid, line in lines if re.search(VICTIMS[kill.victim], line)), None)

    if not until(started, process):
        return False
    time.sleep(kill.part * 6)
    pid = until(victim, process)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, kill.signal)
        until(lambda: pid not in processes(mark), process)
    return pid is not None


def parents(folder: Path, reference: Path, kills: Sequence[Kill], mark: str, tally: Tally, by_hand) -> None:
    """As `chain`, for the processes that start others; `by_hand`: papermill on these notebooks, without Snakemake."""
    first, process, began = len(tally.killed), None, 0.0
    try:
        for kill in kills:
            if process is None or process.poll():
                process, began = study(folder, mark, kill.stage if by_hand else None), time.time()
            if not hit_parent(process, folder, mark, kill, began):
                if process.wait(PATIENCE) == 0 and not by_hand:
                    break
                process = None
                continue
            wrong = []
            if by_hand or kill.victim in ABOVE:
                process.wait(PATIENCE)
                process = None
                wrong = [f"lingers: {line}" for line in gone(mark).values()]
            wrong += differing(folder, reference, whole=False, locks=process is None)
            tally.add(kill.victim, kill.stage, kill, wrong, folder)
        if process is not None:
            process.wait(PATIENCE)
        codes = []
        for name in by_hand or [None]:
            process = study(folder, mark, name)
            codes.append(process.wait(PATIENCE))
    finally:
        if process is not None and process.poll() is None:
            process.kill()
    wrong = differing(folder, reference, whole=True) + ["did not finish"] * any(codes)
    wrong += [f"lingers: {line}" for line in gone(mark).values()]
    settle(folder, wrong, first, tally)


def plan_parents(rng: random.Random, kills: int, by_hand: Sequence[str]) -> list[Kill]:
    """Kills in the order of the notebooks: of papermill and kernel, and without `by_hand` of what starts them too."""
    victims = ["papermill", "kernel"] if by_hand else list(VICTIMS)
    pairs = [(v, s) for v in victims for s in SIGNALS if (v, s) != ("kernel", signal.SIGINT)]  # which may be ignored
    chosen = sorted(rng.choices(by_hand or NOTEBOOKS, k=kills), key=NOTEBOOKS.index)
    turns = rng.sample(pairs, len(pairs)) * (kills // len(pairs) + 1)
    planned, again = [], set()
    for stage, (victim, number) in zip(chosen, turns, strict=False):
        if not by_hand and victim not in ABOVE:  # a notebook that is killed twice has failed: the rest would go on
            victim = "reproduce" if stage in again else victim
            again.add(stage)
        planned.append(Kill(stage, number, "any", rng.random(), victim))
    return planned


# ---- the campaign


def campaign(kills: int, of_parents: int, seed: int, folder: Path, tally: Tally) -> None:
    """`kills` kills in all, `of_parents` of them of parents; `tally` gets what came of them."""
    rng, mark = random.Random(seed), uuid.uuid4().hex
    os.environ[MARK] = mark
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["aepo.study.results", "aepo.environments", "minari.data_collector.episode_buffer"])
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", flush=True)

    if of_parents < kills:
        cost = unbroken(context, folder / "unbroken", True)
        say("unbroken: " + ", ".join(f"{name} {s:.1f} s, {n} writes" for name, (s, n) in cost.items() if name != "end"))
    if kills - of_parents > 12:
        pair(context, folder / "pair", folder / "unbroken", tally)
        say("two processes at once on one run folder")
    chains = plan(rng, kills - of_parents)
    for i in itertools.count():
        left = kills - of_parents - len(tally.killed)
        if left <= 0:
            break
        chain(context, folder / f"chain-{i}", folder / "unbroken", next(chains)[:left], cost, mark, tally)
        say(f"{len(tally.killed)} kills, {sum(tally.same)} survived to the same bytes")
    few = of_parents < 4  # too few for a study: the first notebook by hand
    if of_parents:
        unbroken(context, folder / "unbroken-study", False, "behavior" if few else "end")
    for i in itertools.count():
        left = kills - len(tally.killed)
        if left <= 0:
            break
        by_hand = NOTEBOOKS[:1] if few else NOTEBOOKS if i % 3 == 2 else ()
        batch = plan_parents(rng, min(left, 8), by_hand)
        parents(folder / f"study-{i}", folder / "unbroken-study", batch, uuid.uuid4().hex, tally, by_hand)
        say(f"{len(tally.killed)} kills, {sum(tally.same)} survived to the same bytes")


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
    started, tally = time.monotonic(), Tally()
    try:
        campaign(options.kills, of_parents, options.seed, folder.resolve(), tally)
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        tally.failures.append(f"stuck for {PATIENCE:.0f} s: {error}")
    print(table(tally))
    print(*tally.failures, sep="\n")
    print(f"{sum(tally.same)} of {len(tally.killed)} the same, in {time.monotonic() - started:.0f} s")
    if not options.folder and not tally.failures:
        shutil.rmtree(folder)
    return int(bool(tally.failures) or len(tally.killed) != options.kills)


if __name__ == "__main__":
    sys.exit(main())
