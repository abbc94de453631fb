"""A training step under `torch.compile(mode="reduce-overhead")` beside the one that `Steps` captures by hand.

`python -m benchmarks.compiled`: rows of runs/bench.csv under the case compiled-<stage>. `ms`; `ratio_captured`, its time
over that of the captured step; `compile_s`, until its first steps were done; `difference`, the largest of a parameter after
20 steps of both. Where it is no slower and makes the same numbers, the capture by hand could go. Compiling takes minutes.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from aepo.learners.draws import part
from aepo.learners.training import Steps
from aepo.study import runs
from benchmarks import bench

STEPS = 20


def bench_compiled(stage: str, seeds: int, batch: int, device: str, rounds: int, seconds: float) -> Iterator[bench.Row]:
    """The rows of a stage with the study's own network sizes."""
    profile, data = bench.with_networks("default"), bench.synthetic(*bench.HOPPER, device=device)
    by_hand, plain = (
        Steps(bench.learner_of(stage, data, range(seeds), profile, batch), captured) for captured in (None, False)
    )
    draws, rates = bench.draws_of(by_hand.learner, STEPS), [1e-3] * STEPS
    inputs = [{key: value.clone() for key, value in part(draws, i).items()} for i in range(STEPS)]
    step = torch.compile(plain.step, mode="reduce-overhead")

    def run() -> None:
        for one, rate in zip(inputs, rates, strict=True):
            torch.compiler.cudagraph_mark_step_begin()
            plain.rate.fill_(rate)
            step(one)

    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    compile_s = time.perf_counter() - start
    by_hand.run(draws, rates)
    pairs = zip(by_hand.learner.trained, plain.learner.trained, strict=True)
    difference = max((a - b).abs().max().item() for a, b in pairs)
    ms, captured = (
        value / STEPS for value in bench.medians([run, lambda: by_hand.run(draws, rates)], device, rounds, seconds)
    )
    found = {"ms": ms, "ratio_captured": ms / captured, "compile_s": compile_s, "difference": difference}
    for metric, value in found.items():
        yield bench.Row(f"compiled-{stage}", device, "default", seeds, batch, metric, value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each stage and number of seeds; one that cannot be compiled is said, and the next goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=["behavior", "critic"], choices=bench.STAGES + bench.POLICIES)
    parser.add_argument("--seeds", nargs="+", type=bench.count, default=[1, 8])
    parser.add_argument("--batch", type=bench.count, default=256)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--rounds", type=bench.count, default=15)
    parser.add_argument(
        "--patience", type=float, default=bench.PATIENCE, help="seconds after which a case begins no round"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench.csv"))
    options = parser.parse_args(arguments)
    device = runs.choose_device(options.device)
    torch.set_num_threads(1)
    failed = 0
    for stage in options.stages:
        for seeds in options.seeds:
            torch.compiler.reset()
            try:
                rows = list(bench_compiled(stage, seeds, options.batch, device, options.rounds, options.patience))
            except Exception as error:
                failed += 1
                reason = " ".join(str(error).split())[:300]
                print(f"compiled-{stage}, {seeds} seeds: failed: {type(error).__name__}: {reason}", flush=True)
                continue
            for row in rows:
                print(f"{row.case:22} seeds {row.seeds:2}  {row.metric} {row.value:.3g}", flush=True)
            bench.write(rows, options.output, bench.machine(device))
    if failed:
        raise SystemExit(f"{failed} could not be compiled")


if __name__ == "__main__":
    main()
