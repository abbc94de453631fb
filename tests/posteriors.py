"""Posterior covariances that the study does not use, to check those that it does: Gaussian data, second-order Tweedie."""

from collections.abc import Callable

import torch
from torch import Tensor

from aepo.core.posterior import mean
from aepo.core.schedule import VPSchedule, expand_time


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
