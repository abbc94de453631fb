"""The energy stage: what an energy or shift network learns from, by kind of method, and its learner."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from aepo.core import guidance, losses
from aepo.core.models import VP, Behavior, ClosedShift, Critic, advantage_at, gaussian_posterior, prior
from aepo.core.networks import EnergyNet, ShiftNet, initialize
from aepo.data.datasets import Dataset
from aepo.learners.draws import Draws, Random, part, pick
from aepo.learners.hindsight import GOAL_SIZE
from aepo.learners.support import Support, advantages
from aepo.learners.training import Learner
from aepo.methods import Method
from aepo.settings import EnergySettings

SUPPORTED = ("support", "contrastive")


@dataclass(frozen=True)
class Problem:
    """What a network of guidance is trained for: data, the networks below it, method, inverse temperature, settings.

    `support`: for the kinds of SUPPORTED. `goals`: states end with a goal, which a shift network may be shown others of.
    """

    data: Dataset
    behavior: Behavior
    critic: Critic
    method: Method
    beta: float
    settings: EnergySettings
    support: Support | None = None
    goals: bool = False

    @cached_property
    def state(self) -> Tensor:
        """Recorded states, standardised `(N, n)`."""
        return self.data.standardize(self.data.state)


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
    changed: dict[str, Any] = {"energy": settings.form, "gate": settings.gate, "bregman": settings.bregman}
    return replace(method, **{name: value for name, value in changed.items() if value is not None})


@torch.no_grad()
def target(problem: Problem, pairs: Pairs) -> Tensor:
    """The target of an energy network `(S, B)`: a closed form of `guidance.KINDS`, "support", or "clean", beta Q(a_0).

    Each less what depends on the state alone, log E[exp(beta Q) | s] for "support", beta times the baseline else: it does
    not guide, and where states differ more than their actions do, a network learns nothing else. `settings.clamp`: closed
    forms to beta times the range of recorded advantages.
    """
    kind, beta, critic = problem.method.energy or "", problem.beta, problem.critic
    noisy, t = pairs.noisy_action, pairs.t
    if kind == "support":
        q, candidates = cast(Tensor, pairs.candidate_q), cast(Tensor, pairs.candidates)
        energy = guidance.support_energy(q, candidates, noisy, t, VP, beta, check=False)
        return energy - torch.logsumexp(beta * q, -1) + math.log(q.shape[-1])
    if kind == "clean":
        return beta * (critic.advantage(pairs.state, pairs.action) - pairs.baseline)
    moments = gaussian_posterior(problem.behavior, pairs.state, noisy, t)
    bounds = critic.bounds if problem.settings.clamp else None
    q_function = advantage_at(critic, pairs.state)
    return guidance.closed_form(kind, q_function, *moments, beta, bounds, -1.0, 1.0) - beta * pairs.baseline


def energy_learner(problem: Problem, seeds: tuple[int, ...], name: str = "energy") -> tuple[Learner, nn.Module]:
    """The training of the energy or shift network of a method by its target and loss."""
    problem.behavior.requires_grad_(False)
    problem.critic.requires_grad_(False)
    settings, kind, times = problem.settings, problem.method.energy or "", problem.behavior.variance.shape[-1]
    sizes = (len(seeds), problem.state.shape[1], problem.data.action.shape[1], settings.width, settings.depth)
    shifts, gate = kind.startswith("shift-"), problem.method.gate
    net = ShiftNet(*sizes, times) if shifts else EnergyNet(*sizes, VP, gate, times)
    make: Callable = _shift if shifts else _contrastive if kind == "contrastive" else _regression
    if hasattr(net, "variance"):
        net.variance.copy_(problem.behavior.variance)
    draw, pairs, loss = make(problem, initialize(net.to(problem.state), seeds, "energy"), seeds)

    def diagnose(draws: Draws) -> dict[str, Tensor]:
        """How curved Q is for the closed form: median of beta c_t |H v|, and the share above 1 (`guidance.curvature`)."""
        batch = pairs(draws)
        moments = gaussian_posterior(problem.behavior, batch.state, batch.noisy_action, batch.t)
        direction = draws["noise"].view(batch.noisy_action.shape)
        bend = guidance.curvature(advantage_at(problem.critic, batch.state), *moments, problem.beta, direction)
        return {"curvature": bend.median(-1).values, "curved": (bend > 1).to(bend).mean(-1)}

    return Learner(name, seeds, net, list(net.parameters()), draw, loss, diagnose=diagnose), net


def _first(problem: Problem, draw: Callable, pairs: Callable, seeds: tuple[int, ...]) -> list[Pairs]:
    """The batches that the scale of targets is taken from."""
    count = problem.settings.target_batches
    draws = draw(Random(seeds, "energy-scale", like=problem.state, count=count))
    return [pairs(part(draws, i)) for i in range(count)]


def _regression(problem: Problem, net: EnergyNet, seeds: tuple[int, ...]):
    """Regression on `target`, of recorded actions or of support actions; gives the network the scale of its targets."""
    settings, support, action = problem.settings, cast(Support, problem.support), problem.data.action
    supported, closed = problem.method.energy == "support", problem.method.energy in guidance.KINDS
    if supported:
        candidates = torch.cat([action[support.index].unsqueeze(2), support.action], 2)
        quality = advantages(problem.critic, problem.state, support.index, candidates)
    else:
        states, beyond = problem.state.expand(len(seeds), -1, -1), Beyond(problem, closed and bool(settings.beyond))
        baseline = torch.cat([_baseline(problem, part) for part in states.split(8_192, 1)], 1)

    def draw(random: Random) -> Draws:
        draws = random.diffusion(support.index.shape[1] if supported else len(action), settings.batch, action.shape[1])
        more = {"which": random.index(candidates.shape[2], settings.batch)} if supported else beyond.draw(random)
        return draws | more

    def pairs(draws: Draws) -> Pairs:
        at, more = draws["index"], {}
        if supported:
            more = {"candidates": pick(candidates, at), "candidate_q": pick(quality, at)}
            state = problem.state[pick(support.index, at)]
            clean = pick(more["candidates"].flatten(0, 1), draws["which"].flatten()).view(*at.shape, -1)
        else:
            state, clean, more["baseline"] = problem.state[at], action[at], pick(baseline, at)
            if beyond.wanted:
                state, clean = beyond.move(draws, state, clean)
                more["baseline"] = torch.where(beyond.moved[:, 0], _baseline(problem, state), more["baseline"])
        return Pairs(state, clean, losses.diffuse(clean, draws["noise"], draws["t"], VP), draws["t"], **more)

    def loss(draws: Draws):
        batch = pairs(draws)
        inputs = (net, batch.state, batch.noisy_action, batch.t, target(problem, batch))
        if not problem.method.bregman:
            return losses.energy_loss(*inputs, huber=closed)
        return losses.bregman_loss(*inputs, torch.zeros_like(inputs[-1]) if supported else net.at_noise(batch.state))

    targets = torch.cat([target(problem, batch) for batch in _first(problem, draw, pairs, seeds)], 1)
    loc, scale = targets.mean(1, keepdim=True), targets.std(1, keepdim=True)
    if closed:  # the median and the spread of the middle half, as a normal distribution's std
        low, loc, high = torch.quantile(targets, targets.new_tensor([0.25, 0.5, 0.75]), 1, keepdim=True)
        scale = torch.minimum(scale, (high - low) / 1.349)
    net.loc.copy_(loc)
    net.scale.copy_(scale.clamp(min=1e-6))
    return draw, pairs, loss


@torch.no_grad()
def _baseline(problem: Problem, state: Tensor) -> Tensor:
    """The advantage of the behavior's mean action at states `(S, B, n)`: the posterior mean of no action at t = 1."""
    return problem.critic.advantage(state, prior(problem.behavior, state)[0])


class Beyond:
    """Half of a batch's states off the data (with `goals` another's position as goal), half of its actions anywhere in the
    box: a closed form is known there, a target from samples is not. Or, not `wanted`, none."""

    def __init__(self, problem: Problem, wanted: bool):
        self.problem, self.wanted, self.batch = problem, wanted, problem.settings.batch
        number = torch.arange(self.batch, device=problem.state.device).unsqueeze(-1)
        self.moved, self.free = number < self.batch // 2, number % 2 == 0

    def draw(self, random: Random) -> Draws:
        """What `move` needs."""
        if not self.wanted:
            return {}
        n, d, batch = self.problem.state.shape[1], self.problem.data.action.shape[1], self.batch
        draws = {"jitter": random.normal(batch, n), "uniform": random.uniform(batch, d)}
        return draws | {"goal": random.index(len(self.problem.data), batch)}

    def move(self, draws: Draws, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """States `(S, B, n)` and actions `(S, B, d)`, half of each moved."""
        data, there = self.problem.data, state + self.problem.settings.jitter * draws["jitter"]
        if self.problem.goals:
            goal = data.state[draws["goal"], :GOAL_SIZE] - data.state_mean[-GOAL_SIZE:]
            there = torch.cat([there[..., :-GOAL_SIZE], goal / data.state_std[-GOAL_SIZE:]], -1)
        return torch.where(self.moved, there, state), torch.where(self.free, 2 * draws["uniform"] - 1, action)


def _contrastive(problem: Problem, net: EnergyNet, seeds: tuple[int, ...]):
    """Contrastive energy prediction over the support actions of a state."""
    support, groups = cast(Support, problem.support), problem.settings.groups
    scaled_q = problem.beta * advantages(problem.critic, problem.state, support.index, support.action)
    net.scale.fill_(problem.beta)
    _, states, size, d = support.action.shape

    def draw(random: Random) -> Draws:
        return random.diffusion(states, groups, d) | {"noise": random.normal(groups, size, d)}

    def recorded(at: Tensor) -> tuple[Tensor, Tensor]:
        return problem.state[pick(support.index, at)], pick(support.action, at)

    def pairs(draws: Draws) -> Pairs:
        here, action = recorded(draws["index"])
        here, action, t = here.repeat_interleave(size, 1), action.flatten(1, 2), draws["t"].repeat_interleave(size, 1)
        return Pairs(here, action, losses.diffuse(action, draws["noise"].flatten(1, 2), t, VP), t)

    def loss(draws: Draws):
        at = draws["index"]
        return losses.contrastive_loss(net, *recorded(at), draws["noise"], draws["t"], pick(scaled_q, at), VP)

    return draw, pairs, loss


def _shift(problem: Problem, net: ShiftNet, seeds: tuple[int, ...]):
    """Regression on a closed form of the shift ("taylor", "cubature"), in units of its size; beyond the data too."""
    settings, data, state = problem.settings, problem.data, problem.state
    kind = (problem.method.energy or "").removeprefix("shift-")
    closed = ClosedShift(kind, problem.behavior, problem.critic, problem.beta)
    beyond = Beyond(problem, settings.beyond is not False)

    def draw(random: Random) -> Draws:
        return random.diffusion(len(data), settings.batch, data.action.shape[1]) | beyond.draw(random)

    def pairs(draws: Draws) -> Pairs:
        here, action = state[draws["index"]], data.action[draws["index"]]
        if beyond.wanted:
            here, action = beyond.move(draws, here, action)
        return Pairs(here, action, losses.diffuse(action, draws["noise"], draws["t"], VP), draws["t"])

    @torch.no_grad()
    def regressed(made: Pairs) -> Tensor:
        mean, _ = gaussian_posterior(problem.behavior, made.state, made.noisy_action, made.t)
        return closed.shift(made.state, made.noisy_action, made.t, mean) / net.size(made.t).unsqueeze(-1)

    def loss(draws: Draws):
        made = pairs(draws)
        return losses.shift_loss(net, made.state, made.noisy_action, made.t, regressed(made))

    squares = [regressed(made).square().mean((-2, -1)) for made in _first(problem, draw, pairs, seeds)]
    net.scale.copy_(torch.stack(squares).mean(0).sqrt().clamp(min=1e-6).unsqueeze(-1))
    return draw, pairs, loss
