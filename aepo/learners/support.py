"""Support actions, samples of the behavior model at recorded states; the random inputs of a diffusion loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.core.models import ActionModel, Critic
from aepo.core.networks import generator
from aepo.core.schedule import T_MIN
from aepo.data.datasets import Dataset
from aepo.learners.training import Draws, stack_draws
from aepo.settings import EnergySettings


@dataclass(frozen=True)
class Support:
    """Behavior samples of P recorded states a seed: `index` of the states `(S, P)`, `action` `(S, P, M, d)` in [-1, 1]."""

    index: Tensor
    action: Tensor


@torch.no_grad()
def sample_support(
    behavior: ActionModel, data: Dataset, seeds: Sequence[int], settings: EnergySettings, batch: int = 32_768
) -> Support:
    """Draw the support actions of every seed from a model: `support` for each of `support_states` recorded states."""
    generators = [generator(seed, "support", device=data.state.device) for seed in seeds]
    count = min(settings.support_states, len(data))
    index = torch.stack([torch.randperm(len(data), generator=g, device=g.device)[:count] for g in generators])
    state = data.standardize(data.state)[index]
    return Support(index, sample_actions(behavior, state, settings.support, settings.support_steps, generators, batch))


@torch.no_grad()
def sample_actions(
    behavior: ActionModel,
    state: Tensor,
    size: int,
    steps: int,
    generators: Sequence[torch.Generator],
    batch: int = 32_768,
) -> Tensor:
    """`size` actions in [-1, 1] at each standardised state `(S, P, n)`: `(S, P, size, d)`, in parts of `batch` rows."""
    seeds, count, _ = state.shape
    d, rows, parts = behavior.low.shape[-1], max(1, batch // size), []
    noise = stack_draws(generators, lambda g: torch.randn(count * size, d, generator=g, device=g.device), 0).to(state)
    for start in range(0, count, rows):
        states = state[:, start : start + rows].repeat_interleave(size, 1)
        parts.append(behavior.sample(states, noise[:, start * size : (start + rows) * size], steps))
    return torch.cat(parts, 1).view(seeds, count, size, d)


@torch.no_grad()
def advantages(critic: Critic, state: Tensor, index: Tensor, action: Tensor, rows: int = 1_024) -> Tensor:
    """Advantage of M actions at each indexed state: action `(S, P, M, d)` -> `(S, P, M)`."""
    parts = [
        critic.advantage(state[i], a.flatten(1, 2)).view(a.shape[:-1])
        for i, a in zip(index.split(rows, 1), action.split(rows, 1), strict=True)
    ]
    return torch.cat(parts, 1)


def diffusion_draws(
    generators: Sequence[torch.Generator], count: int, batch: int, size: int, d: int, dtype: torch.dtype
) -> Draws:
    """Indices below `size`, noise and times of `count` steps: `(count, S, batch, ...)`."""

    def normal(g: torch.Generator) -> Tensor:
        return torch.randn(count, batch, d, generator=g, device=g.device, dtype=dtype)

    def uniform(g: torch.Generator) -> Tensor:
        return torch.rand(count, batch, generator=g, device=g.device, dtype=dtype)

    index = stack_draws(generators, lambda g: torch.randint(size, (count, batch), generator=g, device=g.device))
    t = T_MIN + (1 - T_MIN) * stack_draws(generators, uniform)
    return {"index": index, "noise": stack_draws(generators, normal), "t": t}
