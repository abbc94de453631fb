"""A trained task against what can be known of it: guidance by ancestral samples, values by what was collected next."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from aepo.core import sampler
from aepo.core.models import VP, Behavior, Critic
from aepo.core.schedule import clip

STEPS = 40  # of an ancestral draw


@torch.no_grad()
def ancestral(
    noise_model: sampler.NoiseModel, noisy_action: Tensor, t: float, generator: Generator, limit: float | None = None
) -> Tensor:
    """Draw a_0 from the model's own posterior mu_{0|t}(a | a_t) by the reverse SDE from a_t (SDE-DPM-Solver++ 2M).

    With h = lambda_s - lambda_t and k = 1 - exp(-2h) a step is
    a_s = sigma_s/sigma_t exp(-h) a_t + alpha_s k D + sigma_s sqrt(k) z, where D extrapolates the last two predicted
    actions (without that it is the ancestral step of DDPM, whose draws have too little variance).
    noisy_action `(..., d)`: repeat it for several draws. Returns `(..., d)`, in [-limit, limit] where there is one.
    """
    low, high = (None, None) if limit is None else (-limit, limit)
    grid = sampler.solver_grid(VP, STEPS, "logsnr", t, noisy_action.dtype, noisy_action.device)
    times, alphas, sigmas, logsnrs = grid
    x, previous = noisy_action, None
    for i in range(STEPS):
        predicted = clip((x - sigmas[i] * noise_model(x, times[i])) / alphas[i], low, high)
        h = logsnrs[i + 1] - logsnrs[i]
        gain = -math.expm1(-2 * h)
        direction = predicted
        if previous is not None:
            direction = predicted + 0.5 * h / (logsnrs[i] - logsnrs[i - 1]) * (predicted - previous)
        draw = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = (sigmas[i + 1] / sigmas[i] * math.exp(-h)) * x
        x = x + alphas[i + 1] * gain * direction + sigmas[i + 1] * math.sqrt(gain) * draw
        previous = predicted
    return clip(x, low, high)


@torch.no_grad()
def simulated_guidance(
    models: tuple[Behavior, Critic],
    state: Tensor,
    noisy_action: Tensor,
    t: float,
    beta: float,
    draws: int,
    g: Generator,
) -> tuple[Tensor, Tensor]:
    """grad E* = alpha/sigma^2 (E_tilted[a_0] - E[a_0]) over ancestral draws a_0 ~ mu_{0|t}, and its standard error.

    The tilted mean weighs the draws by exp(beta Q). state `(S, B, n)` standardised, noisy_action `(S, B, d)`; both results
    `(S, B, d)`; the error is that of the self-normalised estimate (delta method).
    """
    (behavior, critic), (seeds, batch, d) = models, noisy_action.shape
    states = state.repeat_interleave(draws, 1)
    noisy = noisy_action.repeat_interleave(draws, 1)
    drawn = ancestral(lambda a, m: behavior.noise_net(states, a, m), noisy, t, g, 1.0)
    log_weight = beta * critic.advantage(state, drawn).view(seeds, batch, draws)
    weight = torch.softmax(log_weight, -1).unsqueeze(-1)
    drawn = drawn.view(seeds, batch, draws, d)
    tilted, mean = (weight * drawn).sum(2), drawn.mean(2)
    moment = torch.tensor(t)
    factor = (VP.alpha(moment) / VP.sigma(moment) ** 2).item()
    influence = weight * (drawn - tilted.unsqueeze(2)) - (drawn - mean.unsqueeze(2)) / draws
    return factor * (tilted - mean), factor * influence.square().sum(2).sqrt()
