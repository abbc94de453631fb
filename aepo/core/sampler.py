"""Guided samplers for a VP diffusion: free functions over `(noise_model, energy_gradient)`, no hidden state."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from aepo.core.schedule import T_MIN, Limit, VPSchedule, clip

NoiseModel = Callable[[Tensor, Tensor], Tensor]


@lru_cache(256)
def solver_grid(
    vp: VPSchedule, steps: int, grid: str, t_start: float, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, ...], list[float], list[float], list[float]]:
    """Times on the device, and alpha, sigma, log-SNR there: made once, so that a captured sampler copies nothing."""
    times = vp.grid(steps, grid, t_start)
    alphas, sigmas, logsnrs = (f(times).tolist() for f in (vp.alpha, vp.sigma, vp.logsnr))
    return times.to(device, dtype).unbind(), alphas, sigmas, logsnrs


def solve(
    noise_model: NoiseModel,
    initial_noise: Tensor,
    vp: VPSchedule,
    steps: int = 15,
    energy_gradient: NoiseModel | None = None,
    shift: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    guidance_scale: float | Tensor = 1.0,
    low: Limit = None,
    high: Limit = None,
    order: int = 2,
    grid: str = "logsnr",
    t_start: float = 1.0,
    callback: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """DPM-Solver++ (order 2 multistep, or 1 = DDIM; Lu et al. 2022) from a_{t_start} = initial_noise to an action.

    Guided by an energy, the noise is eps - w sigma_t grad E with w = guidance_scale (a number, or a tensor that broadcasts
    over the action); guided by a shift, the predicted action is m + w shift(noisy_action, t, m), m itself clipped before.
    With w = 0 neither is evaluated. The predicted action is clipped to [low, high] at each step.
    noise_model(noisy_action, t), energy_gradient(noisy_action, t), shift(noisy_action, t, mean): `(..., d)`, t 0-d.
    callback(step, t, noisy_action, predicted_action) sees each step. Returns `(..., d)`, differentiable: `sample` is the
    same without a graph.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    if not T_MIN < t_start <= 1:
        raise ValueError(f"t_start must lie in ({T_MIN:g}, 1], got {t_start}")
    if energy_gradient is not None and shift is not None:
        raise ValueError("give energy_gradient or shift, not both")
    if isinstance(guidance_scale, int | float) and guidance_scale == 0:
        energy_gradient = shift = None
    times, alphas, sigmas, logsnrs = solver_grid(vp, steps, grid, t_start, initial_noise.dtype, initial_noise.device)
    x, previous = initial_noise, None
    for i in range(steps):
        t = times[i]
        noise = noise_model(x, t)
        if energy_gradient is not None:
            noise = noise - guidance_scale * sigmas[i] * energy_gradient(x, t)
        predicted = clip((x - sigmas[i] * noise) / alphas[i], low, high)
        if shift is not None:
            predicted = clip(predicted + guidance_scale * shift(x, t, predicted), low, high)
        if callback is not None:
            callback(i, t, x, predicted)
        h = logsnrs[i + 1] - logsnrs[i]
        direction = predicted
        if order == 2 and previous is not None:
            direction = predicted + 0.5 * h / (logsnrs[i] - logsnrs[i - 1]) * (predicted - previous)
        x = (sigmas[i + 1] / sigmas[i]) * x - (alphas[i + 1] * math.expm1(-h)) * direction
        previous = predicted
    return clip(x, low, high)


sample = torch.no_grad()(solve)
