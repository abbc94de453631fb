"""Support actions: samples of the behavior model at recorded states."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.core.models import ActionModel, Critic
from aepo.data.datasets import Dataset
from aepo.learners.draws import Random
from aepo.settings import EnergySettings

ROWS = 32_768  # sampled at a time


@dataclass(frozen=True)
class Support:
    """Behavior samples of P recorded states a seed: `index` of the states `(S, P)`, `action` `(S, P, M, d)` in [-1, 1]."""

    index: Tensor
    action: Tensor


@torch.no_grad()
def sample_support(behavior: ActionModel, data: Dataset, seeds: Sequence[int], settings: EnergySettings) -> Support:
    """Draw the support actions of every seed from a model: `support` for each of `support_states` recorded states."""
    random = Random(seeds, "support", like=data.state)
    index = random.subset(len(data), min(settings.support_states, len(data)))
    state = data.standardize(data.state)[index]
    return Support(index, sample_actions(behavior, state, settings.support, settings.support_steps, random))


@torch.no_grad()
def sample_actions(behavior: ActionModel, state: Tensor, size: int, steps: int, random: Random) -> Tensor:
    """`size` actions in [-1, 1] at each standardised state `(S, P, n)`: `(S, P, size, d)`."""
    seeds, count, _ = state.shape
    d, rows, parts = behavior.low.shape[-1], max(1, ROWS // size), []
    noise = random.normal(count * size, d)[0]
    for start in range(0, count, rows):
        states = state[:, start : start + rows].repeat_interleave(size, 1)
        parts.append(behavior.sample(states, noise[:, start * size : (start + rows) * size], steps))
    return torch.cat(parts, 1).view(seeds, count, size, d)


@torch.no_grad()
def advantages(critic: Critic, state: Tensor, index: Tensor, action: Tensor) -> Tensor:
    """Advantage of M actions at each indexed state: action `(S, P, M, d)` -> `(S, P, M)`."""
    parts = [
        critic.advantage(state[i], a.flatten(1, 2)).view(a.shape[:-1])
        for i, a in zip(index.split(1_024, 1), action.split(1_024, 1), strict=True)
    ]
    return torch.cat(parts, 1)
