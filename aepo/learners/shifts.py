"""The shift stage: a network of the guidance in the space of clean actions, trained beyond the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aepo.core import losses
from aepo.core.models import VP, Behavior, ClosedShift, Critic, gaussian_posterior
from aepo.core.networks import ShiftNet, generator, initialize
from aepo.data.datasets import Dataset
from aepo.learners.hindsight import GOAL_SIZE
from aepo.learners.support import diffusion_draws
from aepo.learners.training import Draws, Learner, stack_draws
from aepo.settings import EnergySettings


def shift_learner(
    data: Dataset,
    behavior: Behavior,
    critic: Critic,
    form: str,
    beta: float,
    seeds: tuple[int, ...],
    settings: EnergySettings,
    name: str = "shift",
    goals: bool = False,
) -> tuple[Learner, ShiftNet]:
    """Regression of a closed form of the shift ("taylor", "cubature") at inverse temperature beta.

    A closed form can be computed at any state, action and time, unlike a target from samples: half of a batch's states are
    moved off the data (`settings.jitter` standard deviations; `goals`: and given another's position as goal), half of its
    clean actions are uniform in the box. With `settings.beyond` false the batch is recorded pairs.
    """
    net = make_shift_net(behavior, data.state.shape[1], settings)
    initialize(net, seeds, "shift")
    net.variance.copy_(behavior.variance)
    state, d = data.standardize(data.state), data.action.shape[1]
    closed = ClosedShift(form, behavior.requires_grad_(False), critic.requires_grad_(False), beta)

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        draws = diffusion_draws(generators, count, settings.batch, len(data), d, state.dtype)
        if not settings.beyond:
            return draws
        shape, kind = (count, settings.batch), {"device": state.device, "dtype": state.dtype}
        return draws | {
            "jitter": stack_draws(generators, lambda g: torch.randn(*shape, state.shape[1], generator=g, **kind)),
            "uniform": stack_draws(generators, lambda g: torch.rand(*shape, d, generator=g, **kind)),
            "goal": stack_draws(
                generators, lambda g: torch.randint(len(data), shape, generator=g, device=state.device)
            ),
        }

    def pairs(draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """States, noisy actions and times of a step."""
        here, action = state[draws["index"]], data.action[draws["index"]]
        if settings.beyond:
            rows, half = torch.arange(settings.batch, device=here.device), settings.batch // 2
            moved, free = (rows < half).unsqueeze(-1), (rows % 2 == 0).unsqueeze(-1)
            there = here + settings.jitter * draws["jitter"]
            if goals:
                shown = (data.state[draws["goal"], :GOAL_SIZE] - data.state_mean[-GOAL_SIZE:]) / data.state_std[
                    -GOAL_SIZE:
                ]
                there = torch.cat([there[..., :-GOAL_SIZE], shown], -1)
            here, action = torch.where(moved, there, here), torch.where(free, 2 * draws["uniform"] - 1, action)
        return here, losses.diffuse(action, draws["noise"], draws["t"], VP), draws["t"]

    @torch.no_grad()
    def target(here: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        mean, _ = gaussian_posterior(behavior, here, noisy, t)
        return closed.shift(here, noisy, t, mean) / net.size(t).unsqueeze(-1)

    def loss(draws: Draws):
        here, noisy, t = pairs(draws)
        return losses.shift_loss(net, here, noisy, t, target(here, noisy, t))

    generators = [generator(seed, "shift-scale", device=state.device) for seed in seeds]
    draws = draw(generators, settings.target_batches)
    first = [pairs({key: value[i] for key, value in draws.items()}) for i in range(settings.target_batches)]
    square = torch.stack([target(*batch).square().mean((-2, -1)) for batch in first]).mean(0)
    net.scale.copy_(square.sqrt().clamp(min=1e-6).unsqueeze(-1))
    return Learner(name, seeds, net, list(net.parameters()), draw, loss), net


def make_shift_net(behavior: Behavior, state_dim: int, settings: EnergySettings) -> ShiftNet:
    """A shift network for a behavior model's seeds, actions and posterior, not trained."""
    (seeds, _, d), times = behavior.low.shape, behavior.variance.shape[-1]
    return ShiftNet(seeds, state_dim, d, settings.width, settings.depth, times).to(behavior.low)
