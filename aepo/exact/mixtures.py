"""Gaussian mixtures under the diffusion, their intermediate energies, distances of samples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from aepo.core.schedule import VPSchedule

MIXTURES = ("8gaussians", "wide", "ring")
QFunction = Callable[[Tensor], Tensor]  # actions `(..., d)` -> `(...,)`


@dataclass(frozen=True)
class Posterior:
    """mu_{0|t}(a | a_t) = sum_k r_k N(m_k, L_k L_k') at noisy actions: log r, m, and L, `(K, d, d)` where t is 0-d."""

    log_weights: Tensor
    means: Tensor
    factors: Tensor

    @property
    def covariances(self) -> Tensor:
        """C_k = L_k L_k', shape of `factors`."""
        return self.factors @ self.factors.mT

    @property
    def mean(self) -> Tensor:
        """m = sum_k r_k m_k `(..., d)`."""
        return (self.log_weights.exp().unsqueeze(-1) * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """C = sum_k r_k (C_k + (m_k - m)(m_k - m)') `(..., d, d)`, the law of total covariance."""
        centered = self.means - self.mean.unsqueeze(-2)
        spread = self.covariances + centered.unsqueeze(-1) * centered.unsqueeze(-2)
        return (self.log_weights.exp()[..., None, None] * spread).sum(-3)


@dataclass(frozen=True)
class Mixture:
    """mu = sum_k w_k N(mu_k, S_k): weights `(K,)`, means `(K, d)`, covariances `(K, d, d)`, which may be singular."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        count, d = self.means.shape
        if self.weights.shape != (count,) or self.covariances.shape != (count, d, d):
            shapes = [tuple(x.shape) for x in (self.weights, self.means, self.covariances)]
            expected = "(K,), (K, d), (K, d, d)"
            raise ValueError(f"weights, means and covariances have the shapes {shapes}, expected {expected}")
        if not (self.weights > 0).all() or abs(self.weights.sum().item() - 1) > 1e-5:
            raise ValueError(f"weights must be positive and sum to 1, got {self.weights.tolist()}")

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariances)
        return values.clamp(min=0), vectors

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log (w_k N(x; alpha mu_k, V_k)), V_k's eigenvalues and V_k^-1 (x - alpha mu_k) in its eigenvectors."""
        values, vectors = self._eigen
        alpha, sigma = alpha[..., None, None], sigma[..., None, None]
        variance = alpha**2 * values + sigma**2
        centered = x.unsqueeze(-2) - alpha * self.means
        projected = (centered.unsqueeze(-2) @ vectors).squeeze(-2)
        log_density = -0.5 * (projected.square() / variance + variance.log() + math.log(2 * math.pi)).sum(-1)
        return self.weights.log() + log_density, variance, projected / variance

    def _scales(self, t: Tensor, vp: VPSchedule) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t, dtype=self.means.dtype, device=self.means.device)
        return vp.alpha(t), vp.sigma(t)

    def sample(self, count: int, generator: Generator) -> Tensor:
        """`count` draws from mu: mu_k + S_k^(1/2) z with k ~ w; `(count, d)`."""
        values, vectors = self._eigen
        index = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], 1, generator=generator, dtype=self.means.dtype)
        return self.means[index] + ((vectors * values.sqrt().unsqueeze(-2))[index] @ z).squeeze(-1)

    def log_density(self, x: Tensor) -> Tensor:
        """log mu(x) `(...,)` for x `(..., d)`; every covariance must be positive definite."""
        return torch.logsumexp(self._parts(x, torch.ones(()), torch.zeros(()))[0], -1)

    def noised(self, t: Tensor, vp: VPSchedule) -> "Mixture":
        """mu_t = sum_k w_k N(alpha_t mu_k, alpha_t^2 S_k + sigma_t^2 I), t 0-d."""
        alpha, sigma = self._scales(t, vp)
        identity = torch.eye(self.means.shape[1], dtype=self.means.dtype)
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.covariances + sigma**2 * identity)

    def tilted(self, slope: Tensor, beta: float) -> "Mixture":
        """mu exp(beta g.a), g = slope: weights w_k e^(beta g.mu_k + beta^2/2 g'S_k g), means mu_k + beta S_k g."""
        shift = self.covariances @ slope
        log_weights = self.weights.log() + beta * self.means @ slope + 0.5 * beta**2 * shift @ slope
        return Mixture(log_weights.softmax(-1), self.means + beta * shift, self.covariances)

    def score(self, noisy_action: Tensor, t: Tensor, vp: VPSchedule) -> Tensor:
        """grad log mu_t = -sum_k r_k V_k^-1 (a_t - alpha_t mu_k) `(..., d)`; t 0-d or `(...,)`."""
        log_joint, _, solved = self._parts(noisy_action, *self._scales(t, vp))
        direction = (self._eigen[1] @ solved.unsqueeze(-1)).squeeze(-1)
        return -(log_joint.softmax(-1).unsqueeze(-1) * direction).sum(-2).to(noisy_action.dtype)

    def noise(self, noisy_action: Tensor, t: Tensor, vp: VPSchedule) -> Tensor:
        """The exact noise model eps = -sigma_t score = E[eps | a_t], shapes as `score`."""
        sigma = self._scales(t, vp)[1].unsqueeze(-1).to(noisy_action.dtype)
        return -sigma * self.score(noisy_action, t, vp)

    def posterior(self, noisy_action: Tensor, t: Tensor, vp: VPSchedule) -> Posterior:
        """m_k = mu_k + alpha_t S_k V_k^-1 (a_t - alpha_t mu_k), C_k = sigma_t^2 S_k V_k^-1, r_k ∝ w_k N(a_t | k).

        V_k = alpha_t^2 S_k + sigma_t^2 I; noisy_action `(..., d)`, t 0-d or `(...,)`.
        """
        alpha, sigma = self._scales(t, vp)
        log_joint, variance, solved = self._parts(noisy_action, alpha, sigma)
        values, vectors = self._eigen
        step = (vectors @ (values * solved).unsqueeze(-1)).squeeze(-1)
        root = sigma[..., None, None] * (values / variance).sqrt()
        means = self.means + alpha[..., None, None] * step
        return Posterior(log_joint.log_softmax(-1), means, vectors * root.unsqueeze(-2))


def quadratic_energy(
    mixture: Mixture, hessian: Tensor, slope: Tensor, offset: float, a_t: Tensor, t: Tensor, vp: VPSchedule, beta: float
) -> Tensor:
    """E* = logsumexp_k(log r_k + E_k) for Q = offset + slope.a + a'Ha/2, H = `hessian` symmetric; returns `(...,)`.

    E_k = beta Q(m_k) + beta^2/2 g'(I - beta C_k H)^-1 C_k g - 1/2 logdet(I - beta C_k H), g = slope + H m_k, and
    +inf where an eigenvalue of beta L_k'H L_k reaches 1. a_t `(..., d)`, t 0-d or `(...,)`.
    """
    post = mixture.posterior(a_t, t, vp)
    infinite = (torch.linalg.eigvalsh(beta * post.factors.mT @ hessian @ post.factors) >= 1).any(-1)
    identity = torch.eye(hessian.shape[-1], dtype=hessian.dtype)
    system = torch.where(infinite[..., None, None], identity, identity - beta * post.covariances @ hessian)
    curved = post.means @ hessian
    gradient = (slope + curved).unsqueeze(-1)
    q = offset + (post.means * (slope + curved / 2)).sum(-1)
    spread = (gradient.mT @ torch.linalg.solve(system, post.covariances @ gradient))[..., 0, 0]
    energy = beta * q + 0.5 * beta**2 * spread - 0.5 * torch.linalg.slogdet(system).logabsdet
    return torch.logsumexp(post.log_weights + torch.where(infinite, math.inf, energy), -1)


def linear_energy(mixture: Mixture, slope: Tensor, *rest: Any) -> Tensor:
    """`quadratic_energy` of Q = offset + slope.a; rest: offset, a_t, t, vp, beta."""
    return quadratic_energy(mixture, slope.new_zeros(len(slope), len(slope)), slope, *rest)


def trapezoid(points: int, reach: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes `(points^2, 2)` and log weights of the trapezoid rule of N(0, I) on [-reach, reach]^2, normalised."""
    nodes = torch.linspace(-reach, reach, points, dtype=dtype)
    log_density = -0.5 * nodes**2
    log_density[[0, -1]] -= math.log(2)
    return torch.cartesian_prod(nodes, nodes), (log_density.unsqueeze(-1) + log_density).flatten().log_softmax(0)


def grid_energy(
    mixture: Mixture, q_function: QFunction, a_t: Tensor, t: Tensor, vp: VPSchedule, beta: float, points=161, reach=8.0
) -> Tensor:
    """E* = logsumexp_k(log r_k + logsumexp_ij(log v_i v_j + beta Q(m_k + L_k (z_i, z_j)))) `(...,)`, d = 2, any Q.

    v is the trapezoid rule of the standard normal density on `points` nodes z in [-reach, reach], normalised.
    a_t `(..., 2)`, t 0-d or `(...,)`; q_function `(..., 2)` -> `(...,)` sees a million actions at a time.
    Differentiable in a_t (each chunk is computed again in the backward pass).
    """
    if a_t.shape[-1] != 2:
        raise ValueError(f"a_t has shape {tuple(a_t.shape)}, expected (..., 2)")
    z, log_v = trapezoid(points, reach, mixture.means.dtype)

    def component_energy(means: Tensor, factors: Tensor) -> Tensor:
        return torch.logsumexp(log_v + beta * q_function(means.unsqueeze(-2) + z @ factors.mT), -1)

    post = mixture.posterior(a_t, t, vp)
    size, means = max(1, 2**20 // len(z)), post.means.reshape(-1, 2)
    factors = post.factors.expand(*post.means.shape, 2).reshape(-1, 2, 2)
    again = means.requires_grad and len(means) > size
    energies = [
        checkpoint(component_energy, m, f, use_reentrant=False) if again else component_energy(m, f)
        for m, f in zip(means.split(size), factors.split(size), strict=True)
    ]
    return torch.logsumexp(post.log_weights + torch.cat(energies).reshape(post.log_weights.shape), -1)


def grid_shift(
    mixture: Mixture, q_function: QFunction, a_t: Tensor, t: Tensor, vp: VPSchedule, beta: float, points=161, reach=8.0
) -> Tensor:
    """E_tilted[a_0] - E[a_0] = sigma^2/alpha grad E* `(B, 2)`, the two means on the rule of `grid_energy`; t 0-d."""
    z, log_v = trapezoid(points, reach, mixture.means.dtype)
    shifts = []
    for noisy in a_t:
        post = mixture.posterior(noisy, t, vp)
        actions = post.means.unsqueeze(-2) + z @ post.factors.mT
        log_weight = post.log_weights.unsqueeze(-1) + log_v
        change = torch.softmax((log_weight + beta * q_function(actions)).flatten(), 0) - log_weight.flatten().softmax(0)
        shifts.append(change @ actions.flatten(0, 1))
    return torch.stack(shifts)


def guidance(energy_function: Callable[[Tensor], Tensor], noisy_action: Tensor) -> Tensor:
    """grad_{a_t} E `(..., d)` of energy_function `(..., d)` -> `(...,)` by autograd, also under no_grad."""
    with torch.enable_grad():
        at = noisy_action.detach().requires_grad_()
        return torch.autograd.grad(energy_function(at).sum(), at)[0]


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples `(n, d)`, `(m, d)`: unbiased, so at times negative for equal laws."""

    def total(a: Tensor, b: Tensor) -> float:
        rows = a.split(max(1, 2**23 // len(b)))
        return sum(torch.cdist(r, b, compute_mode="donot_use_mm_for_euclid_dist").sum().item() for r in rows)

    n, m = len(x), len(y)
    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))


def toy_mixture(name: str) -> Mixture:
    """2-D mixtures in float64: "8gaussians" (radius .65, std .06), "wide" (3 correlated), "ring" (12, radius .6)."""
    if name not in MIXTURES:
        raise ValueError(f"name must be one of {', '.join(MIXTURES)}, got {name!r}")
    if name == "wide":
        means = torch.tensor([[-0.5, -0.3], [0.4, -0.2], [0.0, 0.5]], dtype=torch.float64)
        rows = [[[0.09, 0.05], [0.05, 0.06]], [[0.06, -0.04], [-0.04, 0.09]], [[0.12, 0.03], [0.03, 0.03]]]
        return Mixture(torch.tensor([0.4, 0.35, 0.25]).double(), means, torch.tensor(rows, dtype=torch.float64))
    count, radius, radial, tangential = (8, 0.65, 0.06, 0.06) if name == "8gaussians" else (12, 0.6, 0.06, 0.12)
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(count, 2, 2)
    covariances = (rotation * torch.tensor([radial, tangential], dtype=torch.float64) ** 2) @ rotation.mT
    return Mixture(torch.full((count,), 1 / count, dtype=torch.float64), radius * rotation[..., 0], covariances)
