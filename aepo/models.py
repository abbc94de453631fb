"""Behavior and Critic: networks of S seeds with their scales; copies with other rows of the seed axis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from aepo.networks import EnergyNet, NoiseNet, TwinQ, ValueNet, select_seeds
from aepo.schedule import VPSchedule
from aepo.settings import BehaviorSettings, CriticSettings

VP = VPSchedule()


class Behavior(nn.Module):
    """Diffusion behavior model of S seeds, its posterior variance table c_t `(S, T)`, and how states are scaled."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, settings: BehaviorSettings):
        super().__init__()
        self.noise_net = NoiseNet(seeds, state_dim, action_dim, settings.width, settings.depth, VP)
        self.register_buffer("variance", torch.ones(seeds, settings.variance_times))
        for name, size in (
            ("state_mean", state_dim),
            ("state_std", state_dim),
            ("low", action_dim),
            ("high", action_dim),
        ):
            self.register_buffer(name, torch.zeros(seeds, 1, size))

    def standardize(self, state: Tensor) -> Tensor:
        """Raw states `(S, B, n)` as the networks take them."""
        return (state - self.state_mean) / self.state_std

    def unscale(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] `(S, B, d)` as the environment takes them."""
        scaled = self.low + (action.clamp(-1, 1) + 1) / 2 * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high)  # which rounding may have left


class Critic(nn.Module):
    """Twin Q with its target copy and V of S seeds; `advantage` is (Q - V) / std(Q - V), the Q of every energy."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, settings: CriticSettings):
        super().__init__()
        self.q = TwinQ(seeds, state_dim, action_dim, settings.width, settings.depth)
        self.q_target = TwinQ(seeds, state_dim, action_dim, settings.width, settings.depth).requires_grad_(False)
        self.value = ValueNet(seeds, state_dim, settings.width, settings.depth)
        for name in ("std", "lowest", "highest"):
            self.register_buffer(name, torch.ones(seeds, 1))

    def advantage(self, state: Tensor, action: Tensor) -> Tensor:
        """(min Q - V) / std over the data: state `(S, B, n)` standardised, action `(S, B K, d)` -> `(S, B K)`.

        K actions a state, state by state; V is evaluated once a state.
        """
        value, count = self.value(state), action.shape[1] // state.shape[1]
        if count > 1:
            state, value = state.repeat_interleave(count, 1), value.repeat_interleave(count, 1)
        return (self.q.minimum(state, action) - value) / self.std

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Least and greatest advantage over the recorded actions, each `(S, 1)`."""
        return self.lowest, self.highest


def _replace_tensors(module: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A frozen copy of a module whose every parameter and buffer is `change(name, tensor)`."""
    made = copy.deepcopy(module)
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        owner, _, key = name.rpartition(".")
        store = made.get_submodule(owner)
        kept = store._parameters if key in store._parameters else store._buffers
        changed = change(name, tensor.detach())
        kept[key] = nn.Parameter(changed, requires_grad=False) if kept is store._parameters else changed
    return made


def take_seeds(module: nn.Module, rows: Sequence[int], seeds: int) -> nn.Module:
    """A frozen copy of a stacked module with the given rows of its seed axis (a row may come twice)."""
    return _replace_tensors(module, lambda _, tensor: select_seeds(tensor, rows, seeds))


def stack_energies(nets: Sequence[EnergyNet]) -> EnergyNet:
    """Energy networks of one row each as rows of one network."""
    states = [net.state_dict() for net in nets]
    return _replace_tensors(nets[0], lambda name, _: torch.cat([state[name] for state in states]))
