"""Gaussian approximation N(m, C) of the diffusion posterior mu_{0|t}(a | a_t, s)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from aepo.core.schedule import T_MIN, VPSchedule, check_time, expand_time


def mean(
    noisy_action: Tensor,
    noise: Tensor,
    t: Tensor,
    vp: VPSchedule,
    low: Tensor | float | None = None,
    high: Tensor | float | None = None,
    check: bool = True,
) -> Tensor:
    """Posterior mean m = (a_t - sigma_t eps) / alpha_t (Tweedie), clipped to the box [low, high] where one is given.

    noisy_action, noise `(..., d)`; t 0-d or `(...,)`; returns `(..., d)`. ValueError for shapes or t outside (0, 1].
    """
    t = torch.as_tensor(t, dtype=noisy_action.dtype, device=noisy_action.device)
    if check:
        if noisy_action.shape[-1:] != noise.shape[-1:]:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, expected {tuple(noisy_action.shape)}")
        check_time(t)
    alpha, sigma = (expand_time(v, noisy_action) for v in (vp.alpha(t), vp.sigma(t)))
    m = (noisy_action - sigma * noise) / alpha
    return m if low is None and high is None else m.clamp(low, high)


def linear_gaussian_bound(action_covariance: Tensor, t: Tensor, vp: VPSchedule) -> Tensor:
    """Mean posterior variance mean diag(S (I + alpha^2/sigma^2 S)^-1) of Gaussian data with covariance S.

    action_covariance `(..., d, d)` symmetric, may be singular; t `(T,)`; returns `(..., T)`. It is the error of
    the best linear estimate of a from a_t, hence an upper bound of the mean posterior variance of any data.
    """
    eigenvalues = torch.linalg.eigvalsh(action_covariance).clamp(min=0)
    snr = (vp.alpha(t) / vp.sigma(t)) ** 2
    variance = eigenvalues.unsqueeze(-2) / (1 + snr.unsqueeze(-1) * eigenvalues.unsqueeze(-2))
    return variance.mean(-1)


def zero(noisy_action: Tensor) -> Tensor:
    """No covariance at all, the posterior as its mean (a point estimate): noisy_action `(..., d)` -> zeros `(...,)`."""
    return torch.zeros_like(noisy_action[..., 0])


def gaussian_data(
    noisy_action: Tensor, t: Tensor, vp: VPSchedule, data_mean: Tensor, data_covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior of Gaussian data N(mu, S): C = S (I + alpha^2/sigma^2 S)^-1, m = mu + alpha/sigma^2 C (a_t - alpha mu).

    noisy_action `(..., d)`, t 0-d, data_mean `(d,)`, data_covariance `(d, d)` symmetric, may be singular.
    Returns mean `(..., d)` and covariance `(d, d)`.
    """
    alpha, sigma = vp.alpha(t), vp.sigma(t)
    eye = torch.eye(data_mean.shape[-1], dtype=data_mean.dtype, device=data_mean.device)
    covariance = torch.linalg.solve(eye + (alpha / sigma) ** 2 * data_covariance, data_covariance)
    covariance = (covariance + covariance.transpose(-1, -2)) / 2
    centered = noisy_action - alpha * data_mean
    return data_mean + alpha / sigma**2 * centered @ covariance, covariance


def tweedie(
    noise_model: Callable[[Tensor, Tensor], Tensor], noisy_action: Tensor, t: Tensor, vp: VPSchedule
) -> tuple[Tensor, Tensor]:
    """Second-order Tweedie: C = sigma^2/alpha^2 (I + sigma^2 grad score) from the Jacobian of the noise model.

    score = -eps/sigma, hence C = sigma^2/alpha^2 (I - sigma d eps/d a_t), made symmetric and positive semidefinite.
    noisy_action `(..., d)`, each row on its own; t 0-d or `(...,)`. Costs d backward passes.
    Returns mean `(..., d)` (not clipped) and covariance `(..., d, d)`.
    """
    with torch.enable_grad():
        reference = noisy_action.detach().requires_grad_(True)
        noise = noise_model(reference, t)
        rows = [
            torch.autograd.grad(noise[..., i].sum(), reference, retain_graph=True)[0]
            for i in range(noisy_action.shape[-1])
        ]
    jacobian = torch.stack(rows, -2)
    alpha, sigma = (expand_time(torch.as_tensor(v), jacobian) for v in (vp.alpha(t), vp.sigma(t)))
    eye = torch.eye(noisy_action.shape[-1], dtype=jacobian.dtype, device=jacobian.device)
    covariance = sigma**2 / alpha**2 * (eye - sigma * jacobian)
    values, vectors = torch.linalg.eigh((covariance + covariance.transpose(-1, -2)) / 2)
    covariance = (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.transpose(-1, -2)
    return mean(noisy_action, noise.detach(), t, vp, check=False), covariance


@torch.no_grad()
def fit_isotropic(
    noise_model: Callable[[Tensor, Tensor], Tensor],
    action: Tensor,
    noise: Tensor,
    times: Tensor,
    vp: VPSchedule,
) -> Tensor:
    """Isotropic posterior variance c_t = mean((a_0 - m)^2) of recorded actions on a grid of times.

    action `(S, B, d)`, noise `(T, S, B, d)`, times `(T,)` increasing; returns `(S, T)`: the residual of the unclipped
    posterior mean (equal to sigma^2/alpha^2 mean((eps - eps_theta)^2), without its cancellation), made
    nondecreasing in t and capped by `linear_gaussian_bound`.
    """
    residual = torch.stack(
        [
            (action - mean(noisy, noise_model(noisy, t), t, vp)).square().mean((-2, -1))
            for t, eps in zip(times, noise, strict=True)
            for noisy in [vp.alpha(t) * action + vp.sigma(t) * eps]
        ],
        -1,
    )
    centered = action - action.mean(-2, keepdim=True)
    covariance = centered.transpose(-1, -2) @ centered / action.shape[-2]
    return torch.minimum(residual.cummax(-1).values, linear_gaussian_bound(covariance, times, vp))


def variance_times(count: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """The uniform grid of `count` times in [T_MIN, 1] on which `fit_isotropic` tables are stored."""
    return torch.linspace(T_MIN, 1.0, count, device=device, dtype=dtype)


def isotropic_variance(table: Tensor, t: Tensor) -> Tensor:
    """c_t by linear interpolation of a `fit_isotropic` table `(S, T)` on `variance_times`: t 0-d or `(S, B)`."""
    count = table.shape[-1]
    position = ((t - T_MIN) / (1 - T_MIN) * (count - 1)).clamp(0, count - 1)
    left = position.floor().clamp(max=count - 2)
    weight, index = position - left, left.long()
    if t.ndim == 0:
        index, weight = index.expand(table.shape[0], 1), weight.expand(table.shape[0], 1)
    return torch.lerp(table.gather(-1, index), table.gather(-1, index + 1), weight.to(table))
