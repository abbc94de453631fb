"""Networks of S seeds with their scales: what makes actions, the critic; copies with other rows of the seed axis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from aepo.core import guidance, posterior, sampler
from aepo.core.networks import MLP, NoiseNet, TwinQ, ValueNet, VelocityNet, select_seeds
from aepo.core.schedule import VPSchedule
from aepo.settings import BehaviorSettings, CriticSettings, PolicySettings

if TYPE_CHECKING:
    from aepo.data.datasets import Dataset

VP = VPSchedule()


class Energy(Protocol):
    """What guides a sampler: an energy network, or a gradient that needs none."""

    def gradient(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """grad_{a_t} E `(S, B, d)` at standardised states, noisy actions and a time."""


class ActionModel(nn.Module):
    """What makes actions, for S seeds: how states and actions are scaled.

    Subclasses have `sample(state, noise, steps, energy, scale)`: actions in [-1, 1] `(S, B, d)` from standardised states
    and initial noise, guided by scale times the gradient of an energy.
    """

    def __init__(self, seeds: int, state_dim: int, action_dim: int):
        super().__init__()
        for name, size in (
            ("state_mean", state_dim),
            ("state_std", state_dim),
            ("low", action_dim),
            ("high", action_dim),
        ):
            self.register_buffer(name, torch.zeros(seeds, 1, size))

    def scale_as(self, data: Dataset) -> None:
        """Take the scales of the data."""
        for name in ("state_mean", "state_std"):
            getattr(self, name).copy_(getattr(data, name))
        self.low.copy_(data.action_low)
        self.high.copy_(data.action_high)

    def standardize(self, state: Tensor) -> Tensor:
        """Raw states `(S, B, n)` as the networks take them."""
        return (state - self.state_mean) / self.state_std

    def unscale(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] `(S, B, d)` as the environment takes them."""
        scaled = self.low + (action.clamp(-1, 1) + 1) / 2 * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high)  # which rounding may have left


class Behavior(ActionModel):
    """Diffusion model of S seeds, and its posterior variance table c_t `(S, T)`."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, settings: BehaviorSettings | PolicySettings):
        super().__init__(seeds, state_dim, action_dim)
        self.noise_net = NoiseNet(seeds, state_dim, action_dim, settings.width, settings.depth, VP)
        self.register_buffer("variance", torch.ones(seeds, getattr(settings, "variance_times", 1)))

    def sample(self, state: Tensor, noise: Tensor, steps: int, energy: Energy | None = None, scale=0.0) -> Tensor:
        return sampler.sample(
            lambda a, t: self.noise_net(state, a, t),
            noise,
            VP,
            steps,
            energy_gradient=None if energy is None else lambda a, t: energy.gradient(state, a, t),
            guidance_scale=scale,
            low=-1.0,
            high=1.0,
        )


class Flow(ActionModel):
    """Flow-matching model of S seeds: a velocity u(s, a_t, t) = eps - a along a_t = (1 - t) a + t eps."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, settings: PolicySettings):
        super().__init__(seeds, state_dim, action_dim)
        self.velocity = VelocityNet(seeds, state_dim, action_dim, settings.width, settings.depth)

    def sample(self, state: Tensor, noise: Tensor, steps: int, energy: Energy | None = None, scale=0.0) -> Tensor:
        """Midpoint steps from t = 1 to 0, two evaluations each, half as many as `steps`; there is no guidance."""
        count = max(1, steps // 2)
        action, times = noise, torch.linspace(1, 0, 2 * count + 1).to(noise)
        for start, middle in zip(times[:-1:2], times[1::2], strict=True):
            half = action - self.velocity(state, action, start) / (2 * count)
            action = action - self.velocity(state, half, middle) / count
        return action.clamp(-1, 1)


class Pointwise(ActionModel):
    """One action a state, of S seeds: the mean of a Gaussian inside the box, or a deterministic policy; takes no noise."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, settings: PolicySettings):
        super().__init__(seeds, state_dim, action_dim)
        self.net = MLP(seeds, state_dim, action_dim, settings.width, settings.depth, norm=True)
        self.log_std = nn.Parameter(torch.full((seeds, 1, action_dim), -1.0))

    def mean(self, state: Tensor) -> Tensor:
        """tanh of the network: standardised state `(S, B, n)` -> `(S, B, d)`."""
        return torch.tanh(self.net(state))

    def sample(self, state: Tensor, noise: Tensor, steps: int, energy: Energy | None = None, scale=0.0) -> Tensor:
        return self.mean(state)


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


MODELS = {
    "weighted": Behavior,
    "flow": Flow,
    "gaussian": Pointwise,
    "deterministic": Pointwise,
    "diffusion-q": Behavior,
}
WITH_CRITIC = ("deterministic", "diffusion-q")


class Trained(nn.Module):
    """A policy with its moving average, which acts, and, for the kinds of WITH_CRITIC, twin Q with its target copy."""

    def __init__(
        self, kind: str, seeds: int, state_dim: int, action_dim: int, settings: PolicySettings, critic: CriticSettings
    ):
        super().__init__()
        make = MODELS[kind]
        self.policy = make(seeds, state_dim, action_dim, settings)
        self.average = make(seeds, state_dim, action_dim, settings).requires_grad_(False)
        if kind in WITH_CRITIC:
            self.q = TwinQ(seeds, state_dim, action_dim, critic.width, critic.depth)
            self.q_target = TwinQ(seeds, state_dim, action_dim, critic.width, critic.depth).requires_grad_(False)

    def advantage(self, state: Tensor, action: Tensor) -> Tensor:
        """Q of the policy's own critic for K actions a state, state by state, as `Critic.advantage`: `(S, B K)`."""
        return self.q.minimum(state.repeat_interleave(action.shape[1] // state.shape[1], 1), action)


CLOSED_FORMS = ("point", "taylor", "taylor-2", "cubature")


class ClosedForm(nn.Module):
    """Guidance without a network: the gradient of a closed form of the energy, through behavior model and critic."""

    def __init__(self, kind: str, behavior: Behavior, critic: Critic, beta: float):
        super().__init__()
        self.kind, self.behavior, self.critic, self.beta = kind, behavior, critic, beta

    def gradient(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """grad_{a_t} of the closed form at the posterior mean in the box: `(S, B, d)`, t 0-d."""
        with torch.enable_grad():
            noisy = noisy_action.detach().requires_grad_(True)
            mean = posterior.mean(noisy, self.behavior.noise_net(state, noisy, t), t, VP, -1.0, 1.0, check=False)
            variance = posterior.isotropic_variance(self.behavior.variance, t).expand(noisy.shape[:2])
            energy = closed_form_energy(self.kind, self.critic, state, mean, variance, self.beta)
            return torch.autograd.grad(energy.sum(), noisy)[0]


def closed_form_energy(kind: str, critic: Critic, state: Tensor, mean: Tensor, variance: Tensor, beta: float) -> Tensor:
    """A closed form of CLOSED_FORMS, not clamped, with its graph: mean `(S, B, d)`, variance `(S, B)` -> `(S, B)`."""
    if kind == "cubature":

        def quality(actions: Tensor) -> Tensor:
            return critic.advantage(state, actions.flatten(1, 2)).view(actions.shape[:-1])

        return guidance.cubature_energy(quality, mean, variance, beta, -1.0, 1.0, check=False)
    q = critic.advantage(state, mean)
    if kind == "point":
        return beta * q
    gradient = torch.autograd.grad(q.sum(), mean, create_graph=True)[0]
    if kind == "taylor":
        return guidance.taylor_energy(q, gradient, variance, beta, check=False)
    hessian = guidance.hessian(gradient, mean, create_graph=True)
    return guidance.taylor_energy(q, gradient, variance, beta, hessian, curvature="negative", check=False)


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
