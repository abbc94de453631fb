"""MLPs with a leading seed axis: S networks trained side by side, weights `(S, in, out)`, inputs `(S, B, in)`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aepo.core.posterior import isotropic_variance
from aepo.core.schedule import VPSchedule

TIME_FEATURES = 16
NARROW, LARGE = 16, 1 << 16  # columns of a weight, numbers of an input
CACHED = 1 << 19  # numbers of a hidden layer that stay in a core's caches
ALIGNED = 16  # rows that a product takes together: parts of multiples of it give, as a rule, the bits of the whole
NORM_EPS = 1e-5


def generator(seed: int, *name: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator that depends on (seed, name) alone, so that no draw depends on what was drawn before or beside it."""
    text = ":".join(str(part) for part in (seed, *name))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") & (2**63 - 1))


class _Narrow(torch.autograd.Function):
    """x W for few columns of W, made as W' x': CPU libraries are several times as slow the other way round."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(weight.transpose(1, 2), x.transpose(1, 2)).transpose(1, 2).contiguous()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, weight), (inner, outer) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            torch.bmm(grad, weight.transpose(1, 2)) if inner else None,
            torch.bmm(grad.transpose(1, 2), x).transpose(1, 2).contiguous() if outer else None,
        )


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W + b in the way that is fastest on a CPU for the number of columns; on a GPU they hardly differ."""
    seeds, _, columns = weight.shape
    if columns == 1 and seeds > 1:
        return (x * weight.transpose(1, 2)).sum(-1, keepdim=True) + bias
    if 1 < columns < NARROW and x.numel() >= LARGE:
        return (_Narrow.apply(x, weight) if torch.is_grad_enabled() else _Narrow.forward(x, weight)) + bias
    return torch.baddbmm(bias, x, weight)


def _normalize(h: Tensor) -> Tensor:
    """Layer normalisation; without a graph on the CPU in place, at half of the cost.

    With a graph there it is given gain 1 and shift 0: without them torch's kernel is not vectorised.
    """
    if h.device.type != "cpu":
        return F.layer_norm(h, h.shape[-1:], eps=NORM_EPS)
    if torch.is_grad_enabled():
        width, kind = h.shape[-1], {"dtype": h.dtype, "device": h.device}
        return F.layer_norm(h, (width,), torch.ones(width, **kind), torch.zeros(width, **kind), eps=NORM_EPS)
    h -= h.mean(-1, keepdim=True)
    square = torch.linalg.vector_norm(h, dim=-1, keepdim=True).square_()
    return h.mul_(square.div_(h.shape[-1]).add_(NORM_EPS).rsqrt_())


class SeedLinear(nn.Module):
    """S affine maps at once: y_s = x_s W_s + b_s, x `(S, B, in)` -> `(S, B, out)`."""

    def __init__(self, seeds: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(seeds, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(seeds, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return _affine(x, self.weight, self.bias)


class MLP(nn.Module):
    """`depth` hidden layers of `width` with SiLU; `residual` skips from layer to layer.

    `norm` adds layer normalisation, without gain and shift.
    """

    def __init__(
        self, seeds: int, inputs: int, outputs: int, width: int, depth: int, norm: bool = False, residual: bool = False
    ):
        super().__init__()
        sizes = [inputs, *[width] * depth]
        self.layers = nn.ModuleList(SeedLinear(seeds, i, o) for i, o in pairwise(sizes))
        self.out = SeedLinear(seeds, width, outputs)
        self.norm, self.residual = norm, residual

    def forward(self, x: Tensor) -> Tensor:
        """`(S, B, in)` -> `(S, B, out)`; without a graph on the CPU in parts of B whose hidden layers stay in the caches."""
        (seeds, width, _), rows = self.out.weight.shape, x.shape[1]
        parts = math.ceil(seeds * rows * width / (CACHED * torch.get_num_threads()))
        if parts <= 1 or x.device.type != "cpu" or torch.is_grad_enabled():
            return self._layers(x)
        ends = {min(rows, ALIGNED * round(rows * i / parts / ALIGNED)) for i in range(1, parts)} - {0, rows}
        return torch.cat([self._layers(part) for part in x.tensor_split(sorted(ends), 1)], 1)

    def _layers(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            h = _affine(x, layer.weight, layer.bias)
            h = F.silu(_normalize(h) if self.norm else h, inplace=not torch.is_grad_enabled())
            x = x + h if self.residual and i else h
        return _affine(x, self.out.weight, self.out.bias)

    @torch.no_grad()
    def input_gradient(self, x: Tensor, columns: slice) -> Tensor:
        """Gradient of the sum of outputs by some columns of the input, without a graph: `(S, B, in)` -> `(S, B, k)`."""
        if self.norm:
            raise ValueError("input_gradient is written for networks without layer normalisation")
        before = []
        for i, layer in enumerate(self.layers):
            h = torch.baddbmm(layer.bias, x, layer.weight)
            before.append(h)
            x = F.silu(h).add_(x) if self.residual and i else F.silu(h)
        outward = self.out.weight.sum(-1).unsqueeze(1).expand_as(x)
        for layer, h in zip(self.layers[:0:-1], before[:0:-1], strict=True):
            g, inward = torch.ops.aten.silu_backward(outward, h), layer.weight.transpose(1, 2)
            outward = torch.baddbmm(outward, g, inward) if self.residual else torch.bmm(g, inward)
        g = torch.ops.aten.silu_backward(outward, before[0])
        return torch.bmm(g, self.layers[0].weight[:, columns].transpose(1, 2))


@lru_cache
def _angular(dtype: torch.dtype, device: torch.device) -> Tensor:
    """2 pi times the frequencies of the time features."""
    return 2 * math.pi * torch.exp2(torch.arange(TIME_FEATURES // 2, dtype=dtype, device=device) - 2)


def time_features(t: Tensor) -> Tensor:
    """sin and cos of t at geometric frequencies 1/4 .. 32 cycles: t `(...,)` -> `(..., TIME_FEATURES)`."""
    angle = t.unsqueeze(-1) * _angular(t.dtype, t.device)
    return torch.cat([angle.sin(), angle.cos()], -1)


def _columns(state: Tensor, t: Tensor) -> Tensor:
    """Time features broadcast to the leading axes of `state`: t 0-d or `(S, B)`."""
    return time_features(t).expand(*state.shape[:-1], TIME_FEATURES)


class NoiseNet(nn.Module):
    """eps_theta(s, a_t, t), with the velocity predicted inside: eps = alpha_t v + sigma_t a_t.

    state `(S, B, n)` standardised, noisy_action `(S, B, d)`, t 0-d or `(S, B)` -> `(S, B, d)`. `harmonics` adds sin and
    cos of pi 2^k a_t for k below it: a density with fine structure is learned in far fewer steps.
    """

    def __init__(
        self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int, vp: VPSchedule, harmonics: int = 0
    ):
        super().__init__()
        self.vp, self.harmonics = vp, harmonics
        inputs = state_dim + action_dim * (1 + 2 * harmonics) + TIME_FEATURES
        self.net = MLP(seeds, inputs, action_dim, width, depth, residual=True)

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        angles = [math.pi * 2**k * noisy_action for k in range(self.harmonics)]
        waves = [wave for angle in angles for wave in (angle.sin(), angle.cos())]
        velocity = self.net(torch.cat([state, noisy_action, *waves, _columns(state, t)], -1))
        alpha, sigma = self.vp.alpha(t), self.vp.sigma(t)
        if t.ndim:
            alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
        return alpha * velocity + sigma * noisy_action


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
    """Gated intermediate energy E(s, a_t, t) = loc + scale (c(s, t) + alpha_t h(s, a_t, t)), `(S, B)`.

    The gate alpha_t makes the guidance vanish at pure noise, where a free network has the wrong size; c takes
    what does not depend on the action. `gate=False` leaves alpha_t out. `loc` and `scale` `(S, 1)` standardise the
    regression target. `snapshots`: this network at earlier steps of its training (`keep_snapshots`).
    """

    def __init__(
        self,
        seeds: int,
        state_dim: int,
        action_dim: int,
        width: int,
        depth: int,
        vp: VPSchedule,
        gate: bool = True,
        snapshots: int = 0,
    ):
        super().__init__()
        self.vp, self.gate = vp, gate
        self.offset = MLP(seeds, state_dim + TIME_FEATURES, 1, width // 2, 2)
        self.net = MLP(seeds, state_dim + action_dim + TIME_FEATURES, 1, width, depth, residual=True)
        self.register_buffer("loc", torch.zeros(seeds, 1))
        self.register_buffer("scale", torch.ones(seeds, 1))
        sizes = (seeds, state_dim, action_dim, width, depth, vp, gate)
        self.snapshots = nn.ModuleList(EnergyNet(*sizes) for _ in range(snapshots)).requires_grad_(False)

    @torch.no_grad()
    def keep_snapshots(self, begun: int, steps: int) -> None:
        """After the chunk that begins at step `begun` of `steps`: copy the network to the snapshots still ahead of it."""
        own = {key: value for key, value in self.state_dict().items() if not key.startswith("snapshots.")}
        for i, snapshot in enumerate(self.snapshots, 1):
            if begun * (len(self.snapshots) + 1) < steps * i:
                snapshot.load_state_dict(own)

    def gated(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """The part that depends on the noisy action, scale alpha_t h: all that guidance needs, `(S, B)`."""
        h = self.net(torch.cat([state, noisy_action, _columns(state, t)], -1)).squeeze(-1)
        return self.scale * (self.vp.alpha(t) * h if self.gate else h)

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        offset = self.offset(torch.cat([state, _columns(state, t)], -1)).squeeze(-1)
        return self.loc + self.scale * offset + self.gated(state, noisy_action, t)

    @torch.no_grad()
    def at_noise(self, state: Tensor) -> Tensor:
        """E at pure noise, loc + scale c(s, 1): the network's log E[exp(beta Q) | s], `(S, B)`."""
        one = torch.ones((), dtype=state.dtype, device=state.device)
        return self.loc + self.scale * self.offset(torch.cat([state, _columns(state, one)], -1)).squeeze(-1)

    @torch.no_grad()
    def gradient(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """grad_{a_t} E, `(S, B, d)`, without a graph."""
        n, d = state.shape[-1], noisy_action.shape[-1]
        inputs = torch.cat([state, noisy_action, _columns(state, t)], -1)
        size = self.scale * self.vp.alpha(t) if self.gate else self.scale
        return self.net.input_gradient(inputs, slice(n, n + d)).mul_(size.unsqueeze(-1))


class VelocityNet(nn.Module):
    """Flow-matching velocity u(s, a_t, t): state `(S, B, n)`, noisy_action `(S, B, d)`, t 0-d or `(S, B)` -> `(S, B, d)`."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__()
        self.net = MLP(seeds, state_dim + action_dim + TIME_FEATURES, action_dim, width, depth, residual=True)

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([state, noisy_action, _columns(state, t)], -1))


def initialize(module: nn.Module, seeds: Sequence[int], name: str) -> nn.Module:
    """Fill every SeedLinear with U(-1/sqrt(in), 1/sqrt(in)) from each seed's own generator; output layers start small.

    A module that stacks k networks a seed (TwinQ) has a leading axis k S; copy j of seed s draws from (s, name, j).
    """
    with torch.no_grad():
        for key, layer in module.named_modules():
            if not isinstance(layer, SeedLinear):
                continue
            rows = layer.weight.view(-1, len(seeds), *layer.weight.shape[1:])
            for copy in range(rows.shape[0]):
                for s, seed in enumerate(seeds):
                    g = generator(seed, name, key, copy)
                    bound = (0.1 if key.endswith("out") else 1.0) / math.sqrt(layer.weight.shape[1])
                    draw = torch.rand(layer.weight.shape[1:], generator=g, dtype=torch.float64) * 2 - 1
                    rows[copy, s] = (bound * draw).to(layer.weight)
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
    """Guidance in units of the clean action, shift = scale sqrt(c_t) v(s, a_t, t): `(S, B, d)`.

    `variance` `(S, T)`: the behavior model's c_t (`posterior.fit_isotropic`), kept here so that the network stands alone;
    `scale` `(S, 1)` standardises the regression target shift / sqrt(c_t), which stays bounded at all t.
    """

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int, variance_times: int):
        super().__init__()
        self.net = VelocityNet(seeds, state_dim, action_dim, width, depth)
        self.register_buffer("variance", torch.ones(seeds, variance_times))
        self.register_buffer("scale", torch.ones(seeds, 1))

    def forward(self, state: Tensor, noisy_action: Tensor, t: Tensor) -> Tensor:
        """v: the shift in units of its own size, `size`."""
        return self.net(state, noisy_action, t)

    def size(self, t: Tensor) -> Tensor:
        """scale sqrt(c_t) `(S, B)` or `(S, 1)`, t `(S, B)` or 0-d."""
        return self.scale * isotropic_variance(self.variance, t).sqrt()

    @torch.no_grad()
    def shift(self, state: Tensor, noisy_action: Tensor, t: Tensor, mean: Tensor | None = None) -> Tensor:
        """The shift `(S, B, d)`, without a graph; the posterior mean is not needed."""
        return self.size(t).unsqueeze(-1) * self(state, noisy_action, t)
