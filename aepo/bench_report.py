"""The whole benchmark: every case in turn, printed as it comes and written as one CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from aepo import bench, settings
from aepo.files import StudyError
from aepo.learners.training import keep_freed_memory
from aepo.study import runs

LARGEST = 16_384  # rows of a stack, seeds x batch, with the QGPO's sizes on a CPU


def run(
    networks: Sequence[str],
    seeds: Sequence[int],
    batches: Sequence[int],
    states: Sequence[int],
    load: int,
    device: str,
    threads: int,
    rounds: int,
    output: Path,
) -> list[bench.Row]:
    """Measure, print and write all cases; StudyError for networks or a device that do not exist."""
    device = runs.choose_device(device)
    for name in networks:
        try:
            settings.with_networks(settings.QUICK, name)
        except ValueError as error:
            raise StudyError(str(error)) from None
    if threads < 1 or rounds < 1 or load < 0:
        raise StudyError("threads and rounds must be at least 1, and load at least 0")
    torch.set_num_threads(threads)
    keep_freed_memory()
    header = bench.machine(device)
    for key, value in header.items():
        print(f"# {key}: {value}")
    rows: list[bench.Row] = []
    for case in _cases(networks, seeds, batches, states, load, device, rounds):
        line = {}
        for row in case:
            rows.append(row)
            line[row.metric] = row.value
        values = "  ".join(f"{name} {value:.3g}" for name, value in line.items())
        print(f"{row.case:22} {row.networks:8} seeds {row.seeds:2}  batch {row.batch:7}  {values}", flush=True)
        bench.write(rows, output, header)
    rows.append(bench.Row("all", device, ",".join(networks), 0, 0, "mb", bench.peak_memory(device)))
    bench.write(rows, output, header)
    print(f"peak memory {rows[-1].value:.0f} MB; written to {output}")
    return rows


def _cases(networks, seeds, batches, states, load, device, rounds):
    for name in networks:
        for stage in bench.STAGES:
            for batch in batches:
                for count in seeds:
                    if reason := _left_out(stage, name, count, batch, device):
                        print(f"{stage:22} {name:8} seeds {count:2}  batch {batch:7}  left out: {reason}")
                    else:
                        yield bench.bench_stage(stage, name, count, batch, device, rounds)
        for count in states:
            for row in bench.bench_act(name, count, device, rounds):
                yield [row]
    if load:
        for row in bench.bench_load(load):
            yield [row]


def _left_out(stage: str, networks: str, seeds: int, batch: int, device: str) -> str | None:
    """Why a case is not measured, or None."""
    if stage == "energy-qgpo" and batch > bench.MOST_GROUPS:
        return f"it is measured with up to {bench.MOST_GROUPS} sets of actions"
    if device == "cpu" and networks == "qgpo" and seeds * batch > LARGEST:
        return "minutes on a CPU, and gigabytes"
    return None
