"""The energy stage: what an energy network learns from, by kind of method, and its learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.core import guidance, losses, posterior
from aepo.core.models import VP, ActionModel, Behavior, Critic
from aepo.core.networks import EnergyNet, generator, initialize
from aepo.core.schedule import T_MIN
from aepo.data.datasets import Dataset
from aepo.learners.training import Draws, Learner, stack_draws
from aepo.methods import Method
from aepo.settings import EnergySettings

SUPPORTED = ("support", "contrastive")
UNBOUNDED = torch.tensor(torch.inf)


@dataclass(frozen=True)
class Support:
    """Behavior samples of P recorded states a seed: `index` of the states `(S, P)`, `action` `(S, P, M, d)` in [-1, 1]."""

    index: Tensor
    action: Tensor


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


@torch.no_grad()
def sample_support(
    behavior: ActionModel, data: Dataset, seeds: Sequence[int], settings: EnergySettings, batch: int = 32_768
) -> Support:
    """Draw the support actions of every seed from a model: `support` for each of `support_states` recorded states."""
    generators = [generator(seed, "support", device=data.state.device) for seed in seeds]
    count = min(settings.support_states, len(data))
    index = torch.stack([torch.randperm(len(data), generator=g, device=g.device)[:count] for g in generators])
    state = data.standardize(data.state)[index]
    return Support(index, sample_actions(behavior, state, settings.support, settings.support_steps, generators, batch))


@torch.no_grad()
def sample_actions(
    behavior: ActionModel,
    state: Tensor,
    size: int,
    steps: int,
    generators: Sequence[torch.Generator],
    batch: int = 32_768,
) -> Tensor:
    """`size` actions in [-1, 1] at each standardised state `(S, P, n)`: `(S, P, size, d)`, in parts of `batch` rows."""
    seeds, count, _ = state.shape
    d, rows, parts = behavior.low.shape[-1], max(1, batch // size), []
    noise = stack_draws(generators, lambda g: torch.randn(count * size, d, generator=g, device=g.device), 0).to(state)
    for start in range(0, count, rows):
        states = state[:, start : start + rows].repeat_interleave(size, 1)
        parts.append(behavior.sample(states, noise[:, start * size : (start + rows) * size], steps))
    return torch.cat(parts, 1).view(seeds, count, size, d)


def target(kind: str, behavior: Behavior, critic: Critic, pairs: Pairs, beta: float, clamp: bool = True) -> Tensor:
    """The target of an energy network `(S, B)`: a closed form (`taylor`, `cubature`), `support`, or `clean`, beta Q(a_0).

    Each less what depends on the state alone, log E[exp(beta Q) | s] for `support`, beta times the baseline else: it does
    not guide, and where states differ more than their actions do, a network learns nothing else.
    """
    if kind == "support":
        energy = guidance.support_energy(
            pairs.candidate_q, pairs.candidates, pairs.noisy_action, pairs.t, VP, beta, check=False
        )
        return energy - torch.logsumexp(beta * pairs.candidate_q, -1) + math.log(pairs.candidate_q.shape[-1])
    if kind == "clean":
        return beta * (critic.advantage(pairs.state, pairs.action) - pairs.baseline)
    energy = losses.energy_target(
        kind,
        behavior.noise_net,
        critic.advantage,
        behavior.variance,
        pairs.state,
        pairs.noisy_action,
        pairs.t,
        VP,
        beta,
        critic.bounds if clamp else (-UNBOUNDED, UNBOUNDED),
    )
    return energy - beta * pairs.baseline


@torch.no_grad()
def baselines(behavior: Behavior, critic: Critic, state: Tensor, batch: int = 8_192) -> Tensor:
    """Advantage of the behavior's mean action, the posterior mean at pure noise, of states `(N, n)`: `(S, N)`."""
    seeds, d = behavior.low.shape[0], behavior.low.shape[-1]
    one, parts = torch.ones((), dtype=state.dtype, device=state.device), []
    for states in state.split(batch):
        states = states.expand(seeds, -1, -1)
        nothing = states.new_zeros(seeds, states.shape[1], d)
        noise = behavior.noise_net(states, nothing, one)
        mean = posterior.mean(nothing, noise, one, VP, -1.0, 1.0, check=False)
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


@torch.no_grad()
def advantages(critic: Critic, state: Tensor, index: Tensor, action: Tensor, rows: int = 1_024) -> Tensor:
    """Advantage of M actions at each indexed state: action `(S, P, M, d)` -> `(S, P, M)`."""
    parts = [
        critic.advantage(state[i], a.flatten(1, 2)).view(a.shape[:-1])
        for i, a in zip(index.split(rows, 1), action.split(rows, 1), strict=True)
    ]
    return torch.cat(parts, 1)


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
    net = make_net(data, len(seeds), method, settings)
    initialize(net, seeds, "energy")
    state = data.standardize(data.state)
    behavior.requires_grad_(False)
    critic.requires_grad_(False)
    kind, size = method.energy, len(data) if support is None else support.index.shape[1]
    shared = (behavior, critic, beta, net)
    if kind == "contrastive":
        pairs, loss = _contrastive(state, support, critic, beta, net)
        draw = _contrastive_draws(size, settings, data, state)
    else:
        pairs = make_pairs(kind, data, state, behavior, critic, support)
        loss = _regression(method, pairs, *shared)

        def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
            draws = diffusion_draws(generators, count, settings.batch, size, data.action.shape[1], state.dtype)
            if support is None:
                return draws
            shape, most = (count, settings.batch), support.action.shape[2] + 1
            return draws | {
                "which": stack_draws(generators, lambda g: torch.randint(most, shape, generator=g, device=g.device))
            }

    def diagnose(draws: Draws) -> dict[str, Tensor]:
        batch = pairs(draws)
        direction = draws["noise"].view(batch.noisy_action.shape)
        return losses.curvature_info(
            behavior.noise_net, critic.advantage, behavior.variance, batch.state, batch.noisy_action, batch.t, VP, beta,
            direction,
        )  # fmt: skip

    if kind == "contrastive":
        net.scale.fill_(beta)
    else:
        draws = draw([generator(seed, "energy-scale", device=state.device) for seed in seeds], settings.target_batches)
        with torch.no_grad():
            targets = [
                target(
                    kind, behavior, critic, pairs({key: value[i] for key, value in draws.items()}), beta, method.clamp
                )
                for i in range(settings.target_batches)
            ]
        targets = torch.cat(targets, 1)
        loc, scale = targets.mean(1, keepdim=True), targets.std(1, keepdim=True)
        if kind in losses.TARGETS:  # the median and the spread of the middle half, as a normal distribution's std
            low, loc, high = torch.quantile(targets, targets.new_tensor([0.25, 0.5, 0.75]), 1, keepdim=True)
            scale = torch.minimum(scale, (high - low) / 1.349)
        net.loc.copy_(loc)
        net.scale.copy_(scale.clamp(min=1e-6))
    trained = [p for p in net.parameters() if p.requires_grad]
    return Learner(name, seeds, net, trained, draw, loss, diagnose=diagnose), net


def make_net(data: Dataset, seeds: int, method: Method, settings: EnergySettings) -> EnergyNet:
    """An energy network of a method, not trained."""
    sizes = (seeds, data.state.shape[1], data.action.shape[1], settings.width, settings.depth, VP)
    return EnergyNet(*sizes, method.gate).to(data.state)


def _regression(method: Method, pairs, behavior: Behavior, critic: Critic, beta: float, net: EnergyNet):
    def loss(draws: Draws):
        batch = pairs(draws)
        with torch.no_grad():
            energy = target(method.energy, behavior, critic, batch, beta, method.clamp)
        inputs = (net, batch.state, batch.noisy_action, batch.t, energy)
        if method.energy in losses.TARGETS:
            return losses.robust_energy_loss(*inputs)
        if not method.bregman:
            return losses.energy_loss(*inputs)
        shift = net.at_noise(batch.state) if batch.candidate_q is None else torch.zeros_like(energy)
        return losses.bregman_loss(*inputs, shift)

    return loss


def _contrastive(state: Tensor, support: Support, critic: Critic, beta: float, net: EnergyNet):
    quality = advantages(critic, state, support.index, support.action)
    rows = torch.arange(len(quality), device=quality.device).unsqueeze(1)

    def pairs(draws: Draws) -> Pairs:
        action = support.action[rows, draws["index"]].flatten(1, 2)
        t = draws["t"].repeat_interleave(support.action.shape[2], 1)
        states = state[support.index[rows, draws["index"]]].repeat_interleave(support.action.shape[2], 1)
        return Pairs(states, action, losses.diffuse(action, draws["noise"].flatten(1, 2), t, VP), t)

    def loss(draws: Draws):
        index = draws["index"]
        return losses.contrastive_loss(
            net,
            state[support.index[rows, index]],
            support.action[rows, index],
            draws["noise"],
            draws["t"],
            beta * quality[rows, index],
            VP,
        )

    return pairs, loss


def _contrastive_draws(size: int, settings: EnergySettings, data: Dataset, state: Tensor):
    d, count_in_set = data.action.shape[1], settings.support

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        draws = diffusion_draws(generators, count, settings.groups, size, d, state.dtype)
        shape = (count, settings.groups, count_in_set, d)
        noise = stack_draws(generators, lambda g: torch.randn(shape, generator=g, device=g.device, dtype=state.dtype))
        return draws | {"noise": noise}

    return draw


def diffusion_draws(
    generators: Sequence[torch.Generator], count: int, batch: int, size: int, d: int, dtype: torch.dtype
) -> Draws:
    """Indices below `size`, noise and times of `count` steps: `(count, S, batch, ...)`."""

    def normal(g: torch.Generator) -> Tensor:
        return torch.randn(count, batch, d, generator=g, device=g.device, dtype=dtype)

    def uniform(g: torch.Generator) -> Tensor:
        return torch.rand(count, batch, generator=g, device=g.device, dtype=dtype)

    index = stack_draws(generators, lambda g: torch.randint(size, (count, batch), generator=g, device=g.device))
    t = T_MIN + (1 - T_MIN) * stack_draws(generators, uniform)
    return {"index": index, "noise": stack_draws(generators, normal), "t": t}
