"""Networks of S seeds with their scales: what makes actions, the critic; copies with other rows of the seed axis."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from aepo.core import guidance, posterior, sampler
from aepo.core.networks import NoiseNet, TwinQ, ValueNet, select_seeds
from aepo.core.schedule import VPSchedule

VP = VPSchedule()
Module = TypeVar("Module", bound=nn.Module)


class EnergyGuide(Protocol):
    """What guides a sampler by the gradient of an energy."""

    def gradient(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """grad_{a_t} E `(S, B, d)` at standardised states, noisy actions and a time."""


class ShiftGuide(Protocol):
    """What guides a sampler in units of the clean action: a closed form or a network of the shift."""

    def shift(self, state: Tensor, noisy_action: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """E_tilted[a_0] - E[a_0] `(S, B, d)`; mean: the predicted action."""


Guide = EnergyGuide | ShiftGuide


class ActionModel(nn.Module):
    """What makes actions, for S seeds: how states and actions are scaled."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int):
        super().__init__()
        self.state_mean, self.state_std = (nn.Buffer(torch.zeros(seeds, 1, state_dim)) for _ in range(2))
        self.low, self.high = (nn.Buffer(torch.zeros(seeds, 1, action_dim)) for _ in range(2))

    def sample(self, state: Tensor, noise: Tensor, steps: int, guide: Guide | None = None, scale=0.0, t=1.0) -> Tensor:
        """Actions in [-1, 1] `(S, B, d)` from standardised states and the noise at time t, guided by scale times a guide."""
        raise NotImplementedError

    def scale(self, state_mean: Tensor, state_std: Tensor, low: Tensor, high: Tensor) -> None:
        """Set mean and standard deviation of states `(n,)` and the action box `(d,)`, those of the data."""
        for name, value in {"state_mean": state_mean, "state_std": state_std, "low": low, "high": high}.items():
            getattr(self, name).copy_(value)

    def standardize(self, state: Tensor) -> Tensor:
        """Raw states `(S, B, n)` as the networks take them."""
        return (state - self.state_mean) / self.state_std

    def unscale(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] `(S, B, d)` as the environment takes them."""
        scaled = self.low + (action.clamp(-1, 1) + 1) / 2 * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high)  # which rounding may have left


class Behavior(ActionModel):
    """Diffusion model of S seeds, and its posterior variance table c_t `(S, T)`."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int, variance_times: int = 1):
        super().__init__(seeds, state_dim, action_dim)
        self.noise_net = NoiseNet(seeds, state_dim, action_dim, width, depth, VP)
        self.variance = nn.Buffer(torch.ones(seeds, variance_times))

    def sample(self, state: Tensor, noise: Tensor, steps: int, guide: Guide | None = None, scale=0.0, t=1.0) -> Tensor:
        by: dict[str, Any] = {"t_start": t}
        if hasattr(guide, "shift"):
            by["shift"] = lambda a, t, mean: cast(ShiftGuide, guide).shift(state, a, t, mean)
        elif guide is not None:
            by["energy_gradient"] = lambda a, t: cast(EnergyGuide, guide).gradient(state, a, t)
        noise_model = lambda a, t: self.noise_net(state, a, t)  # noqa: E731
        return sampler.sample(noise_model, noise, VP, steps, **by, guidance_scale=scale, low=-1.0, high=1.0)


class Critic(nn.Module):
    """Twin Q with its target copy and V of S seeds; `advantage` is (Q - V) / std(Q - V), the Q of every energy."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__()
        self.q = TwinQ(seeds, state_dim, action_dim, width, depth)
        self.q_target = TwinQ(seeds, state_dim, action_dim, width, depth).requires_grad_(False)
        self.value = ValueNet(seeds, state_dim, width, depth)
        self.std, self.lowest, self.highest = (nn.Buffer(torch.ones(seeds, 1)) for _ in range(3))

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


def gaussian_posterior(behavior: Behavior, state: Tensor, noisy_action: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean in the box `(S, B, d)` and isotropic variance `(S, B)` of mu_{0|t}(a | a_t, s); t 0-d or `(S, B)`."""
    noise = behavior.noise_net(state, noisy_action, t)
    mean = posterior.mean(noisy_action, noise, t, VP, -1.0, 1.0, check=False)
    return mean, posterior.isotropic_variance(behavior.variance, t).expand(mean.shape[:-1])


def prior(behavior: Behavior, state: Tensor) -> tuple[Tensor, Tensor]:
    """The moments of mu(a | s) itself, `gaussian_posterior` of no action at t = 1."""
    noise = state.new_zeros(*state.shape[:2], behavior.low.shape[-1])
    return gaussian_posterior(behavior, state, noise, state.new_ones(()))


def advantage_at(critic: Critic, state: Tensor) -> Callable[[Tensor], Tensor]:
    """A critic's advantage at states `(S, B, n)` as a function of actions `(S, B, d)` or `(S, B, K, d)`, one number each."""
    return lambda action: critic.advantage(state, action.flatten(1, -2)).view(action.shape[:-1])


class ClosedForm(nn.Module):
    """Guidance without a network: the gradient of a closed form of the energy, through behavior model and critic."""

    def __init__(self, kind: str, behavior: Behavior, critic: Critic, beta: Tensor | float):
        super().__init__()
        self.kind, self.behavior, self.critic, self.beta = kind, behavior, critic, cast(Any, beta)

    def gradient(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """grad_{a_t} of `guidance.closed_form`, not clamped, at the posterior mean in the box: `(S, B, d)`, t 0-d."""
        with torch.enable_grad():
            noisy = noisy_action.detach().requires_grad_(True)
            moments = gaussian_posterior(self.behavior, state, noisy, t)
            q_function = advantage_at(self.critic, state)
            energy = guidance.closed_form(self.kind, q_function, *moments, self.beta, low=-1.0, high=1.0)
            return torch.autograd.grad(energy.sum(), noisy)[0]


class ClosedShift(ClosedForm):
    """Guidance without a network in units of the clean action: `guidance.taylor_shift` or `cubature_shift` of the critic.

    beta: a number, or one a seed `(S, 1)`. `shift` raises ValueError where the kind is neither.
    """

    def shift(self, state: Tensor, noisy_action: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        """The shift at the posterior mean in the box `(S, B, d)`; the behavior model is not asked again."""
        variance = posterior.isotropic_variance(self.behavior.variance, t).expand(mean.shape[:-1])
        q_function, one = advantage_at(self.critic, state), isinstance(self.beta, int | float)
        if self.kind == "cubature":
            scaled = q_function if one else lambda action: self.beta.unsqueeze(-1) * q_function(action)
            return guidance.cubature_shift(scaled, mean, variance, self.beta if one else 1.0, -1.0, 1.0)
        with torch.enable_grad():
            at = mean.detach().requires_grad_(True)
            gradient = torch.autograd.grad(q_function(at).sum(), at)[0]
        if self.kind != "taylor":
            raise ValueError(f"a shift has the kind taylor or cubature, got {self.kind!r}")
        return guidance.taylor_shift(gradient, variance if one else self.beta * variance, self.beta if one else 1.0)


def take_seeds(module: Module, rows: Sequence[int], seeds: int) -> Module:
    """A frozen copy of a stacked module with the given rows of its seed axis (a row may come twice)."""
    made = copy.deepcopy(module).requires_grad_(False)
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        owner, _, key = name.rpartition(".")
        holder, chosen = made.get_submodule(owner), select_seeds(tensor.detach(), rows, seeds)
        setattr(holder, key, nn.Parameter(chosen, requires_grad=False) if key in holder._parameters else chosen)
    return made
