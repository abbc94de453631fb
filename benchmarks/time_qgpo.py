"""Times the public QGPO's own steps beside ours: python -m benchmarks.time_qgpo CHECKOUT/Offline_RL_2D

CHECKOUT is a clone of github.com/ChenDRAG/CEP-energy-guided-diffusion (made for its commit 4bbfe53); of it `diffusion_SDE`
is imported, nothing else. Its steps are those of its training loops on random transitions of Hopper's sizes, with batches
at hand; ours gather theirs. Our networks have about as many parameters. Drawing support actions is in neither. `products`
are the matrix products of our behavior step alone. One CPU thread, process CPU time, medians, all in turn.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from aepo.learners.critics import critic_learner
from aepo.learners.training import Steps
from benchmarks import bench, products

ACTIONS, SOLVER_STEPS = 16, 15
STEPS = {
    "behavior": ("behavior", "products"),
    "critic": ("critic-softmax", "critic"),
    "energy": ("energy-qgpo with Q", "energy-qgpo", "energy-aepo", "energy-aepo-net", "energy-aepo-support"),
}


class Public:
    """The public code's networks and what it calls for one step, on random data."""

    def __init__(self, folder: Path):
        sys.path.insert(0, str(folder))
        try:
            from diffusion_SDE import loss, model, schedule
        except ImportError as error:
            sys.exit(
                f"{folder} has no importable diffusion_SDE ({error}): give the folder Offline_RL_2D of a clone of it"
            )
        schedule.marginal_prob_std = partial(schedule.marginal_prob_std, device="cpu")  # its default is a GPU
        self.loss, self.time = loss.loss_fn, schedule.marginal_prob_std
        n, d = bench.HOPPER
        settings_ = SimpleNamespace(device="cpu", alpha=3.0, q_alpha=3.0, method="CEP")
        self.net = model.ScoreNet(n + d, d, self.time, args=settings_)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4)

    def step(self, stage: str, batch: int) -> Callable[[], object]:
        """One training step of a stage of STEPS."""
        n, d = bench.HOPPER
        data = {"s": torch.randn(batch, n), "s_": torch.randn(batch, n), "a": torch.rand(batch, d) * 2 - 1}
        data |= {"r": torch.randn(batch, 1), "d": torch.zeros(batch, 1)}
        data |= {key: torch.rand(batch, ACTIONS, d) * 2 - 1 for key in ("fake_a", "fake_a_")}
        if stage == "critic":
            return lambda: self.net.q[0].update_q0(data)
        if stage == "energy":
            return lambda: self.net.q[0].update_qt(data)

        def behavior() -> None:
            self.net.condition = data["s"]
            loss = self.loss(self.net, data["a"], self.time)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        return behavior

    def act(self, states: int, scale: float) -> Callable[[], object]:
        """One call for `states` states."""
        inputs = torch.randn(states, bench.HOPPER[0]).numpy()

        def call() -> None:
            self.net.q[0].guidance_scale = scale
            self.net.select_actions(inputs, SOLVER_STEPS)

        return call


def our_step(stage: str, batch: int) -> Callable[[], object]:
    """One training step of ours, of a stage of STEPS.

    `critic-softmax` backs up 16 actions, as the public critic does. `with Q`: with the Q of the support actions made in
    each step, as the public code makes it; ours has it made once, of a critic that no longer changes.
    """
    profile, data = bench.with_networks("qgpo"), bench.synthetic(*bench.HOPPER, rows=10_000)
    behavior, critic = bench.networks_of(data, [0], profile)
    if stage == "critic-softmax":
        own = replace(profile.critic, batch=batch, discount=0.99, support=ACTIONS, support_steps=1)
        learner = critic_learner(data, (0,), own, behavior)[0]
    else:
        kind = "behavior" if stage == "products" else stage.removesuffix(" with Q")
        learner = bench.learner_of(kind, data, [0], profile, batch)
    chunk = Steps(learner)
    draws = bench.draws_of(learner, 1)
    state, action = data.state[None, :batch], data.action[None, : batch * ACTIONS]

    def step() -> None:
        if stage.endswith(" with Q"):
            with torch.no_grad():
                critic.advantage(state, action)
        chunk.run(draws, [1e-3])

    return products.products_of(step, "cpu") if stage == "products" else step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Offline_RL_2D of a clone of the public QGPO")
    parser.add_argument("--rounds", type=bench.count, default=15, help="at most so many rounds behind each median")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="To copy construct from a tensor")
    public = Public(arguments.folder)

    def line(name: str, theirs: Callable[[], object], ours: dict[str, Callable[[], object]]) -> None:
        times = bench.medians([theirs, *ours.values()], "cpu", arguments.rounds, seconds=20)
        print(f"{name:24} public {times[0]:7.1f} ms")
        for case, ms in zip(ours, times[1:], strict=True):
            print(f"    {case:20} ours   {ms:7.1f} ms   ratio {ms / times[0]:.2f}", flush=True)
        if "products" in ours:
            print(f"    share of the matrix-product rate {times[2] / times[1]:.2f}")

    for key, value in bench.machine("cpu").items():
        print(f"# {key}: {value}")
    for stage, batches in (("behavior", (4096, 256)), ("critic", (256,)), ("energy", (256,))):
        for batch in batches:
            ours = {case: our_step(case, batch) for case in STEPS[stage]}
            line(f"{stage}, batch {batch}", public.step(stage, batch), ours)
    for i, (name, scale) in enumerate({"act-guided": 1.0, "act-unguided": 0.0}.items()):
        for states in (1, 10, 256):
            ours = bench.acting("qgpo", states, solver_steps=SOLVER_STEPS)[i]
            line(f"{name}, {states} state{'s' * (states > 1)}", public.act(states, scale), {name: ours})


if __name__ == "__main__":
    main()
