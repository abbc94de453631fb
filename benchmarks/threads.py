"""What other numbers of threads than training's one would take: `python -m benchmarks.threads` prints docs/speed.md's table.

One optimizer step, wall time, median over rounds in which the numbers of threads take turns: alone on the machine, and
beside a process that keeps all cores but one busy. The last columns are the time of what training takes over the best.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from aepo.learners.training import THREADS, Steps, threads
from benchmarks.bench import HOPPER, draws_of, learner_of, synthetic, with_networks

CASES = [
    (networks, stage, batch)
    for networks, batches in (("default", (256, 4096)), ("qgpo", (256, 4096)))
    for stage in ("behavior", "critic", "energy-aepo-net")
    for batch in batches
]


def busy() -> None:
    """Keep a core busy."""
    while True:
        pass


def steps_in_turn(step: Callable[[], object], counts: Sequence[int], seconds: float) -> list[float]:
    """Median milliseconds of a step with each number of threads."""
    taken: list[list[float]] = [[] for _ in counts]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(taken[0]) < 3:
        for count, times in zip(counts, taken, strict=True):
            with threads(count):
                step()  # its threads are woken
                start = time.perf_counter()
                step()
                times.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(times) for times in taken]


def rows(counts: Sequence[int], seconds: float) -> Iterator[str]:
    """The table of docs/speed.md, line by line."""
    titles = [f"{count} thread{'s' * (count > 1)}{where}" for where in ("", ", busy") for count in counts]
    yield f"| networks, stage, batch | {' | '.join(titles)} | over the best | busy |"
    yield "|---" * (len(titles) + 3) + "|"
    data = synthetic(*HOPPER)
    for networks, stage, batch in CASES:
        learner = learner_of(stage, data, (0,), with_networks(networks), batch)
        steps, draws = Steps(learner), draws_of(learner, 1)
        found = []
        for beside in (0, os.cpu_count() - 1):
            others = [mp.Process(target=busy, daemon=True) for _ in range(beside)]
            for process in others:
                process.start()
            found.append(steps_in_turn(lambda: steps.run(draws, [1e-3]), counts, seconds))  # noqa: B023
            for process in others:
                process.kill()
                process.join()
        shown = [f"{value:.1f}" for times in found for value in times]
        over = [f"{times[counts.index(THREADS)] / min(times):.2f}" for times in found]
        yield f"| {networks}, {stage}, {batch} | {' | '.join(shown + over)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="a case and state of the machine (default: 6)")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}, torch {torch.__version__}; milliseconds")
    for line in rows(sorted({1, 2, os.cpu_count()}), options.seconds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
