"""A trained task against what can be known of it: guidance by ancestral samples, values by what was collected next."""

from __future__ import annotations

import torch
from torch import Tensor

from aepo.core import guidance, sampler
from aepo.core.models import VP, Behavior, ClosedForm, Critic, advantage_at


@torch.no_grad()
def simulated_guidance(
    behavior: Behavior,
    critic: Critic,
    state: Tensor,
    noisy_action: Tensor,
    t: float,
    beta: float,
    draws: int,
    generator: torch.Generator,
    steps: int = 40,
) -> tuple[Tensor, Tensor]:
    """grad E* = alpha/sigma^2 (E_tilted[a_0] - E[a_0]) over ancestral draws a_0 ~ mu_{0|t}, and its standard error.

    The tilted mean weighs the draws by exp(beta Q). state `(S, B, n)` standardised, noisy_action `(S, B, d)`; both results
    `(S, B, d)`; the error is that of the self-normalised estimate (delta method).
    """
    seeds, batch, d = noisy_action.shape
    states = state.repeat_interleave(draws, 1)
    drawn = sampler.ancestral(
        lambda a, moment: behavior.noise_net(states, a, moment),
        noisy_action.repeat_interleave(draws, 1),
        VP,
        t,
        steps,
        generator,
        -1.0,
        1.0,
    )
    log_weight = beta * critic.advantage(state, drawn).view(seeds, batch, draws)
    weight = torch.softmax(log_weight, -1).unsqueeze(-1)
    drawn = drawn.view(seeds, batch, draws, d)
    tilted, mean = (weight * drawn).sum(2), drawn.mean(2)
    moment = torch.tensor(t)
    factor = (VP.alpha(moment) / VP.sigma(moment) ** 2).item()
    influence = weight * (drawn - tilted.unsqueeze(2)) - (drawn - mean.unsqueeze(2)) / draws
    return factor * (tilted - mean), factor * influence.square().sum(2).sqrt()


def closed_form_guidance(
    form: str,
    behavior: Behavior,
    critic: Critic,
    state: Tensor,
    noisy_action: Tensor,
    t: float,
    beta: float,
    support: Tensor | None = None,
) -> Tensor:
    """Gradient of a target itself, a form of `guidance.KINDS` or "support", without a network or clamp: `(S, B, d)`.

    state, noisy_action `(S, B, ...)`; `support` `(S, B, M, d)`: behavior samples of each state.
    """
    moment = torch.tensor(t, dtype=noisy_action.dtype, device=noisy_action.device)
    if form != "support":
        return ClosedForm(form, behavior, critic, beta).gradient(state, noisy_action, moment)
    with torch.enable_grad():
        noisy = noisy_action.detach().requires_grad_(True)
        q = advantage_at(critic, state)(support)
        energy = guidance.support_energy(q, support, noisy, moment, VP, beta, check=False)
        return torch.autograd.grad(energy.sum(), noisy)[0]


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine between vectors along the last axis."""
    return torch.nn.functional.cosine_similarity(first, second, dim=-1)
