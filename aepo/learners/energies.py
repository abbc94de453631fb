"""The energy stage: what an energy network learns from, by kind of method, and its learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aepo.core import guidance, losses
from aepo.core.models import VP, Behavior, Critic, advantage_at, gaussian_posterior
from aepo.core.networks import EnergyNet, generator, initialize
from aepo.data.datasets import Dataset
from aepo.learners.support import Support, advantages, diffusion_draws
from aepo.learners.training import Draws, Learner, stack_draws
from aepo.methods import Method
from aepo.settings import EnergySettings

SUPPORTED = ("support", "contrastive")


@dataclass(frozen=True)
class Pairs:
    """What a target is computed from: state `(S, B, n)` standardised, its clean action, the noised one, t `(S, B)`.

    `baseline` `(S, B)`: the advantage of the behavior's mean action at the state. For `support`: candidates
    `(S, B, M, d)`, the clean action among them, and their advantage `(S, B, M)`.
    """

    state: Tensor
    action: Tensor
    noisy_action: Tensor
    t: Tensor
    baseline: Tensor | float = 0.0
    candidates: Tensor | None = None
    candidate_q: Tensor | None = None


def applied(method: Method, settings: EnergySettings) -> Method:
    """The method with the switches that the settings set."""
    changed = {"energy": settings.form, "gate": settings.gate, "bregman": settings.bregman}
    return replace(method, **{name: value for name, value in changed.items() if value is not None})


def target(kind: str, behavior: Behavior, critic: Critic, pairs: Pairs, beta: float, clamp: bool = True) -> Tensor:
    """The target of an energy network `(S, B)`: a closed form of `guidance.KINDS`, "support", or "clean", beta Q(a_0).

    Each less what depends on the state alone, log E[exp(beta Q) | s] for "support", beta times the baseline else: it does
    not guide, and where states differ more than their actions do, a network learns nothing else. `clamp`: closed forms to
    beta times the range of recorded advantages.
    """
    if kind == "support":
        energy = guidance.support_energy(
            pairs.candidate_q, pairs.candidates, pairs.noisy_action, pairs.t, VP, beta, check=False
        )
        return energy - torch.logsumexp(beta * pairs.candidate_q, -1) + math.log(pairs.candidate_q.shape[-1])
    if kind == "clean":
        return beta * (critic.advantage(pairs.state, pairs.action) - pairs.baseline)
    moments = gaussian_posterior(behavior, pairs.state, pairs.noisy_action, pairs.t)
    q_function, bounds = advantage_at(critic, pairs.state), critic.bounds if clamp else None
    return guidance.closed_form(kind, q_function, *moments, beta, bounds, -1.0, 1.0) - beta * pairs.baseline


@torch.no_grad()
def baselines(behavior: Behavior, critic: Critic, state: Tensor, batch: int = 8_192) -> Tensor:
    """Advantage of the behavior's mean action, the posterior mean at pure noise, of states `(N, n)`: `(S, N)`."""
    seeds, d = behavior.low.shape[0], behavior.low.shape[-1]
    one, parts = torch.ones((), dtype=state.dtype, device=state.device), []
    for states in state.split(batch):
        states = states.expand(seeds, -1, -1)
        mean, _ = gaussian_posterior(behavior, states, states.new_zeros(seeds, states.shape[1], d), one)
        parts.append(critic.advantage(states, mean))
    return torch.cat(parts, 1)


def make_pairs(
    kind: str, data: Dataset, state: Tensor, behavior: Behavior, critic: Critic, support: Support | None
) -> Callable[[Draws], Pairs]:
    """A function from the draws of a step to what its targets are computed from; `state` standardised `(N, n)`."""
    rows = torch.arange(behavior.low.shape[0], device=state.device).unsqueeze(1)
    if kind != "support":
        baseline = baselines(behavior, critic, state)

        def recorded(draws: Draws) -> Pairs:
            action = data.action[draws["index"]]
            noisy = losses.diffuse(action, draws["noise"], draws["t"], VP)
            return Pairs(state[draws["index"]], action, noisy, draws["t"], baseline[rows, draws["index"]])

        return recorded
    candidates = torch.cat([data.action[support.index].unsqueeze(2), support.action], 2)
    quality = advantages(critic, state, support.index, candidates)

    def supported(draws: Draws) -> Pairs:
        index = draws["index"]
        chosen, q = candidates[rows, index], quality[rows, index]
        clean = candidates[rows, index, draws["which"]]
        noisy = losses.diffuse(clean, draws["noise"], draws["t"], VP)
        return Pairs(state[support.index[rows, index]], clean, noisy, draws["t"], candidates=chosen, candidate_q=q)

    return supported


def energy_learner(
    data: Dataset,
    behavior: Behavior,
    critic: Critic,
    method: Method,
    beta: float,
    seeds: tuple[int, ...],
    settings: EnergySettings,
    name: str = "energy",
    support: Support | None = None,
) -> tuple[Learner, EnergyNet]:
    """The energy network's training by a method's target and loss at inverse temperature beta."""
    method = applied(method, settings)
    net = make_net(data, len(seeds), method, settings)
    initialize(net, seeds, "energy")
    state = data.standardize(data.state)
    behavior.requires_grad_(False)
    critic.requires_grad_(False)
    if method.energy == "contrastive":
        net.scale.fill_(beta)
        pairs, draw, loss = _contrastive(state, support, critic, beta, net, settings)
    else:
        pairs, draw, loss = _regression(data, state, support, behavior, critic, method, beta, net, seeds, settings)

    def diagnose(draws: Draws) -> dict[str, Tensor]:
        """How curved Q is for the closed form: median of beta c_t |H v|, and the share above 1 (`guidance.curvature`)."""
        batch = pairs(draws)
        moments = gaussian_posterior(behavior, batch.state, batch.noisy_action, batch.t)
        direction = draws["noise"].view(batch.noisy_action.shape)
        bend = guidance.curvature(advantage_at(critic, batch.state), *moments, beta, direction)
        return {"curvature": bend.median(-1).values, "curved": (bend > 1).to(bend).mean(-1)}

    return Learner(name, seeds, net, list(net.parameters()), draw, loss, diagnose=diagnose), net


def make_net(data: Dataset, seeds: int, method: Method, settings: EnergySettings) -> EnergyNet:
    """An energy network of a method, not trained."""
    sizes = (seeds, data.state.shape[1], data.action.shape[1], settings.width, settings.depth, VP)
    return EnergyNet(*sizes, method.gate).to(data.state)


def _regression(
    data: Dataset,
    state: Tensor,
    support: Support | None,
    behavior: Behavior,
    critic: Critic,
    method: Method,
    beta: float,
    net: EnergyNet,
    seeds: tuple[int, ...],
    settings: EnergySettings,
):
    """Pairs, draws and loss of a target of `target`; gives the network the scale of its targets."""
    kind, size = method.energy, len(data) if support is None else support.index.shape[1]
    d = data.action.shape[1]
    pairs = make_pairs(kind, data, state, behavior, critic, support)

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        draws = diffusion_draws(generators, count, settings.batch, size, d, state.dtype)
        if support is None:
            return draws
        shape, most = (count, settings.batch), support.action.shape[2] + 1
        which = stack_draws(generators, lambda g: torch.randint(most, shape, generator=g, device=g.device))
        return draws | {"which": which}

    def loss(draws: Draws):
        batch = pairs(draws)
        with torch.no_grad():
            energy = target(kind, behavior, critic, batch, beta, settings.clamp)
        inputs = (net, batch.state, batch.noisy_action, batch.t, energy)
        if not method.bregman:
            return losses.energy_loss(*inputs, huber=kind in guidance.KINDS)
        shift = net.at_noise(batch.state) if batch.candidate_q is None else torch.zeros_like(energy)
        return losses.bregman_loss(*inputs, shift)

    generators = [generator(seed, "energy-scale", device=state.device) for seed in seeds]
    draws, count = draw(generators, settings.target_batches), settings.target_batches
    batches = (pairs({key: value[i] for key, value in draws.items()}) for i in range(count))
    with torch.no_grad():
        targets = torch.cat([target(kind, behavior, critic, batch, beta, settings.clamp) for batch in batches], 1)
    loc, scale = targets.mean(1, keepdim=True), targets.std(1, keepdim=True)
    if kind in guidance.KINDS:  # the median and the spread of the middle half, as a normal distribution's std
        low, loc, high = torch.quantile(targets, targets.new_tensor([0.25, 0.5, 0.75]), 1, keepdim=True)
        scale = torch.minimum(scale, (high - low) / 1.349)
    net.loc.copy_(loc)
    net.scale.copy_(scale.clamp(min=1e-6))
    return pairs, draw, loss


def _contrastive(
    state: Tensor, support: Support, critic: Critic, beta: float, net: EnergyNet, settings: EnergySettings
):
    """Pairs, draws and loss of contrastive energy prediction over the support actions of a state."""
    quality = advantages(critic, state, support.index, support.action)
    rows = torch.arange(len(quality), device=quality.device).unsqueeze(1)
    _, states, size, d = support.action.shape

    def pairs(draws: Draws) -> Pairs:
        action = support.action[rows, draws["index"]].flatten(1, 2)
        t = draws["t"].repeat_interleave(size, 1)
        here = state[support.index[rows, draws["index"]]].repeat_interleave(size, 1)
        return Pairs(here, action, losses.diffuse(action, draws["noise"].flatten(1, 2), t, VP), t)

    def loss(draws: Draws):
        index = draws["index"]
        here, actions = state[support.index[rows, index]], support.action[rows, index]
        return losses.contrastive_loss(net, here, actions, draws["noise"], draws["t"], beta * quality[rows, index], VP)

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        draws = diffusion_draws(generators, count, settings.groups, states, d, state.dtype)
        shape = (count, settings.groups, size, d)
        noise = stack_draws(generators, lambda g: torch.randn(shape, generator=g, device=g.device, dtype=state.dtype))
        return draws | {"noise": noise}

    return pairs, draw, loss
