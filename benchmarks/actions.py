"""What one action of each method costs: `python -m benchmarks.actions runs/study/<task>` prints docs/speed.md's table.

Rows that the networks of actions, Q and guidance are asked for one state (not those of V), and wall milliseconds of a call
for 1 and for 60 states, medians of rounds in which the methods take turns; one seed, one thread.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from aepo import files
from aepo.core import networks
from aepo.core.networks import EnergyNet, NoiseNet, ShiftNet, TwinQ
from aepo.learners.policies import Flow, Pointwise
from aepo.methods import METHODS
from aepo.study import runs, tables
from aepo.study.policy import Policy

COUNTED = {  # what a call is of, by the function that is called with states `(S, B, n)` first
    "behavior": (NoiseNet, "forward"),
    "Q": (TwinQ, "forward"),
    "energy or shift": (EnergyNet, "gradient"),
    "shift": (ShiftNet, "shift"),
    "policy": (Pointwise, "mean"),
}


def counted(counts: Counter) -> Callable[[], None]:
    """Make the functions of COUNTED count the rows they are given; returns what undoes it."""
    plain = {key: getattr(*key) for key in (*COUNTED.values(), (networks.VelocityNet, "forward"))}
    names = {key: name for name, key in COUNTED.items()} | {(networks.VelocityNet, "forward"): "flow"}

    def counting(key: tuple) -> Callable:
        def call(self: torch.nn.Module, state: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            counts[names[key]] += state.shape[1]
            return plain[key](self, state, *rest)

        return call

    for owner, name in plain:
        setattr(owner, name, counting((owner, name)))
    return lambda: [setattr(*key, function) for key, function in plain.items()]


def rows_of(policy: Policy, state: torch.Tensor) -> str:
    """Rows a state of each network, as text."""
    counts: Counter = Counter()
    undo = counted(counts)
    try:
        policy.act(state)
    finally:
        undo()
    if isinstance(policy.actor.guide, ShiftNet):  # which asks a velocity network
        counts.pop("flow")
    elif isinstance(policy.actor.behavior, Flow):
        counts["policy"] = counts.pop("flow")
    whole = Counter({"energy or shift": counts.pop("shift", 0)}) + counts
    return ", ".join(f"{count} {name}" for name, count in sorted(whole.items()) if count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an evaluated run: runs/study/<task>")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the rounds, in all")
    parser.add_argument("--output", type=Path, help="CSV file to write too: runs/actions.csv")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = runs.find_folder(given.folder)
    evaluated = runs.read_manifest(folder)["evaluation"]
    policies = {name: Policy.load(folder, name, device="cpu") for name in METHODS if name in evaluated}
    one = next(iter(policies.values())).actor.behavior.state_mean[0].numpy()
    many, taken = one.repeat(60, 0), {(name, size): [] for name in policies for size in (1, 60)}
    until = time.perf_counter() + given.seconds
    while time.perf_counter() < until or min(map(len, taken.values())) < 3:
        for name, policy in policies.items():
            for states in (one, many):
                start = time.perf_counter()
                policy.act(states)
                taken[name, len(states)].append(1e3 * (time.perf_counter() - start))
    rows = [
        [f"`{name}`", rows_of(policy, one), *(f"{statistics.median(taken[name, size]):.1f}" for size in (1, 60))]
        for name, policy in policies.items()
    ]
    print(tables.markdown_table(["method", "rows a state", "ms, 1 state", "ms, 60 states"], rows))
    if given.output:
        times = {size: [statistics.median(taken[name, size]) for name in policies] for size in (1, 60)}
        with files.atomic_path(given.output) as temporary:
            made = pd.DataFrame({"method": list(policies), "ms_1": times[1], "ms_60": times[60]}).round(2)
            made.assign(task=folder.name).to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
