"""MLPs with a leading seed axis: S networks trained side by side, weights `(S, in, out)`, inputs `(S, B, in)`."""

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aepo.core import fast
from aepo.core.posterior import isotropic_variance
from aepo.core.schedule import VPSchedule

TIME_FEATURES = 16


def generator(seed: int, *name: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that depends on (seed, name) alone, so that no draw depends on what was drawn before or beside it."""
    text = ":".join(str(part) for part in (seed, *name))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") & (2**63 - 1))


class SeedLinear(nn.Module):
    """S affine maps at once: y_s = x_s W_s + b_s, x `(S, B, in)` -> `(S, B, out)`."""

    def __init__(self, seeds: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(seeds, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(seeds, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return fast.affine(x, self.weight, self.bias)


class MLP(nn.Module):
    """`depth` hidden layers of `width` with SiLU; `residual` skips layers, `norm` normalises them, no gain, no shift."""

    def __init__(
        self, seeds: int, inputs: int, outputs: int, width: int, depth: int, norm: bool = False, residual: bool = False
    ):
        super().__init__()
        sizes = [inputs, *[width] * depth]
        self.layers = cast(Sequence[SeedLinear], nn.ModuleList(SeedLinear(seeds, i, o) for i, o in pairwise(sizes)))
        self.out = SeedLinear(seeds, width, outputs)
        self.norm, self.residual = norm, residual

    def forward(self, x: Tensor) -> Tensor:
        """`(S, B, in)` -> `(S, B, out)`."""
        for i, layer in enumerate(self.layers):
            h = layer(x)
            h = F.silu(F.layer_norm(h, h.shape[-1:]) if self.norm else h)
            x = x + h if self.residual and i else h
        return self.out(x)


def time_features(t: Tensor, state: Tensor) -> Tensor:
    """sin and cos of t, 0-d or `(S, B)`, at frequencies 1/4 .. 32 cycles, for each state: `(S, B, TIME_FEATURES)`."""
    cycles = torch.exp2(torch.arange(TIME_FEATURES // 2, dtype=t.dtype, device=t.device) - 2)
    angle = 2 * math.pi * cycles * t.unsqueeze(-1)
    return torch.cat([angle.sin(), angle.cos()], -1).expand(*state.shape[:-1], TIME_FEATURES)


class NoiseNet(nn.Module):
    """eps_theta(s, a_t, t), with the velocity predicted inside: eps = alpha_t v + sigma_t a_t.

    state `(S, B, n)` standardised, noisy_action `(S, B, d)`, t 0-d or `(S, B)` -> `(S, B, d)`.
    """

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int, vp: VPSchedule):
        super().__init__()
        self.vp = vp
        self.net = MLP(seeds, state_dim + action_dim + TIME_FEATURES, action_dim, width, depth, residual=True)

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        velocity = self.net(torch.cat([state, noisy_action, time_features(t, state)], -1))
        t = t.unsqueeze(-1)
        return self.vp.alpha(t) * velocity + self.vp.sigma(t) * noisy_action


class TwinQ(nn.Module):
    """Two critics a seed: state `(S, B, n)`, action `(S, B, d)` -> `(2, S, B)`; Q(s, a) is the smaller (`minimum`)."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__()
        self.net = MLP(2 * seeds, state_dim + action_dim, 1, width, depth, norm=True)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([state, action], -1)
        seeds, batch, _ = x.shape
        return self.net(x.unsqueeze(0).expand(2, -1, -1, -1).reshape(2 * seeds, batch, -1)).view(2, seeds, batch)

    def minimum(self, state: Tensor, action: Tensor) -> Tensor:
        """min(Q1, Q2), `(S, B)`."""
        return self(state, action).amin(0)


class ValueNet(nn.Module):
    """V(s): state `(S, B, n)` -> `(S, B)`."""

    def __init__(self, seeds: int, state_dim: int, width: int, depth: int):
        super().__init__()
        self.net = MLP(seeds, state_dim, 1, width, depth, norm=True)

    def forward(self, state: Tensor) -> Tensor:
        return self.net(state).squeeze(-1)


class EnergyNet(nn.Module):
    """Gated intermediate energy E(s, a_t, t) = loc + scale (c(s, t) + gate_t h(s, a_t, t)), `(S, B)`.

    The gate, alpha_t (True) or "jacobian", alpha_t c_t / sigma_t^2, that of a Gaussian's posterior mean (from `variance`, as
    `ShiftNet` has it), makes the guidance vanish at pure noise, where a free network (False) has the wrong size; c takes
    what does not depend on the action. `loc` and `scale` `(S, 1)` standardise the regression target.
    """

    def __init__(
        self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int, vp: VPSchedule, gate=True, times=1
    ):
        super().__init__()
        self.vp, self.gate = vp, gate
        if gate == "jacobian":
            self.variance = nn.Buffer(torch.ones(seeds, times))
        self.offset = MLP(seeds, state_dim + TIME_FEATURES, 1, width // 2, 2)
        self.net = MLP(seeds, state_dim + action_dim + TIME_FEATURES, 1, width, depth, residual=True)
        self.loc, self.scale = nn.Buffer(torch.zeros(seeds, 1)), nn.Buffer(torch.ones(seeds, 1))

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        h = self.net(torch.cat([state, noisy_action, time_features(t, state)], -1)).squeeze(-1)
        return self._offset(state, t) + self.scale * (self._gate(t) * h if self.gate else h)

    def _gate(self, t: Tensor) -> Tensor:
        """The factor of the part that guides: t 0-d or `(S, B)`."""
        alpha = self.vp.alpha(t)
        return alpha if self.gate is True else alpha * isotropic_variance(self.variance, t) / self.vp.sigma(t) ** 2

    def _offset(self, state: Tensor, t: Tensor) -> Tensor:
        return self.loc + self.scale * self.offset(torch.cat([state, time_features(t, state)], -1)).squeeze(-1)

    @torch.no_grad()
    def at_noise(self, state: Tensor) -> Tensor:
        """E at pure noise, loc + scale c(s, 1): the network's log E[exp(beta Q) | s], `(S, B)`."""
        return self._offset(state, torch.ones((), dtype=state.dtype, device=state.device))

    @torch.no_grad()
    def gradient(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """grad_{a_t} E, `(S, B, d)`, without a graph."""
        n, d = state.shape[-1], noisy_action.shape[-1]
        inputs = torch.cat([state, noisy_action, time_features(t, state)], -1)
        size = self.scale * self._gate(t) if self.gate else self.scale
        return size.unsqueeze(-1) * fast.input_gradient(self.net, inputs, slice(n, n + d))


class VelocityNet(nn.Module):
    """Flow-matching velocity u(s, a_t, t): state `(S, B, n)`, noisy_action `(S, B, d)`, t 0-d or `(S, B)` -> `(S, B, d)`."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__()
        self.net = MLP(seeds, state_dim + action_dim + TIME_FEATURES, action_dim, width, depth, residual=True)

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([state, noisy_action, time_features(t, state)], -1))


@torch.no_grad()
def initialize(module: nn.Module, seeds: Sequence[int], name: str) -> nn.Module:
    """Fill every SeedLinear with U(-1/sqrt(in), 1/sqrt(in)) from each seed's own generator; output layers start small.

    A module that stacks k networks a seed (TwinQ) has a leading axis k S; copy j of seed s draws from (s, name, j).
    """
    for key, layer in module.named_modules():
        if not isinstance(layer, SeedLinear):
            continue
        bound = (0.1 if key.endswith("out") else 1.0) / math.sqrt(layer.weight.shape[1])
        for row, weight in enumerate(layer.weight):
            copy, s = divmod(row, len(seeds))
            g = generator(seeds[s], name, key, copy)
            draw = torch.rand(weight.shape, generator=g, dtype=torch.float64) * 2 - 1
            weight.copy_(bound * draw)
    return module


def select_seeds(tensor: Tensor, rows: Sequence[int], seeds: int) -> Tensor:
    """Rows of the seed axis of a stored tensor whose leading axis is k S (k = 2 for TwinQ)."""
    stacked = tensor.view(-1, seeds, *tensor.shape[1:])
    return stacked[:, list(rows)].reshape(-1, *tensor.shape[1:]).contiguous()


def join_seeds(first: Tensor, second: Tensor, seeds_first: int, seeds_second: int) -> Tensor:
    """Concatenate two stored tensors along the seed axis (leading axis k S)."""
    a = first.view(-1, seeds_first, *first.shape[1:])
    b = second.view(-1, seeds_second, *second.shape[1:])
    return torch.cat([a, b], 1).reshape(-1, *first.shape[1:]).contiguous()


class ShiftNet(nn.Module):
    """Guidance in units of the clean action, shift = scale c_t^power v(s, a_t, t): `(S, B, d)`.

    `variance` `(S, T)`: the behavior model's c_t (`posterior.fit_isotropic`), kept here so that the network stands alone;
    `scale` `(S, 1)` standardises the regression target shift / c_t^power: for 1, to first order beta grad Q(m); for 1/2,
    which hides the small t, bounded.
    """

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int, times: int, power=1.0):
        super().__init__()
        self.power = power
        self.net = VelocityNet(seeds, state_dim, action_dim, width, depth)
        self.variance, self.scale = nn.Buffer(torch.ones(seeds, times)), nn.Buffer(torch.ones(seeds, 1))

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """v: the shift in units of its own size, `size`."""
        return self.net(state, noisy_action, t)

    def size(self, t: Tensor) -> Tensor:
        """scale c_t^power `(S, B)` or `(S, 1)`, t `(S, B)` or 0-d."""
        return self.scale * isotropic_variance(self.variance, t) ** self.power

    @torch.no_grad()
    def shift(self, state: Tensor, noisy_action: Tensor, t: Tensor, mean: Tensor | None = None) -> Tensor:
        """The shift `(S, B, d)`, without a graph; the posterior mean is not needed."""
        return self.size(t).unsqueeze(-1) * self(state, noisy_action, t)
