"""Gaussian approximation N(m, C) of the diffusion posterior mu_{0|t}(a | a_t, s)."""

from collections.abc import Callable

import torch
from torch import Tensor

from aepo.core.schedule import T_MIN, Limit, VPSchedule, check_time, clip, expand_time


def mean(
    noisy_action: Tensor, noise: Tensor, t: Tensor, vp: VPSchedule, low: Limit = None, high: Limit = None, check=True
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
    return clip((noisy_action - sigma * noise) / alpha, low, high)


def linear_gaussian_bound(action_covariance: Tensor, t: Tensor, vp: VPSchedule) -> Tensor:
    """Mean posterior variance mean diag(S (I + alpha^2/sigma^2 S)^-1) of Gaussian data with covariance S.

    action_covariance `(..., d, d)` symmetric, may be singular; t `(T,)`; returns `(..., T)`. It is the error of
    the best linear estimate of a from a_t, hence an upper bound of the mean posterior variance of any data.
    """
    eigenvalues = torch.linalg.eigvalsh(action_covariance).clamp(min=0)
    snr = (vp.alpha(t) / vp.sigma(t)) ** 2
    variance = eigenvalues.unsqueeze(-2) / (1 + snr.unsqueeze(-1) * eigenvalues.unsqueeze(-2))
    return variance.mean(-1)


@torch.no_grad()
def fit_isotropic(
    noise_model: Callable[[Tensor, Tensor], Tensor], action: Tensor, noise: Tensor, times: Tensor, vp: VPSchedule
) -> Tensor:
    """Isotropic posterior variance c_t = mean((a_0 - m)^2) of recorded actions on a grid of times.

    action `(S, B, d)`, noise `(T, S, B, d)`, times `(T,)` increasing; returns `(S, T)`: the residual of the unclipped
    posterior mean (equal to sigma^2/alpha^2 mean((eps - eps_theta)^2), without its cancellation), made
    nondecreasing in t and capped by `linear_gaussian_bound`.
    """
    residuals = []
    for t, eps in zip(times, noise, strict=True):
        noisy = vp.alpha(t) * action + vp.sigma(t) * eps
        residuals.append((action - mean(noisy, noise_model(noisy, t), t, vp)).square().mean((-2, -1)))
    residual = torch.stack(residuals, -1)
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
