"""The energy stage: what an energy or shift network learns from, by kind of method, and its learner."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from aepo.core import guidance, losses
from aepo.core.models import VP, Behavior, ClosedShift, Critic, advantage_at, gaussian_posterior
from aepo.core.networks import EnergyNet, ShiftNet, initialize
from aepo.data.datasets import Dataset
from aepo.learners.draws import Draws, Random, part
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

    @property
    def kind(self) -> str:
        """What the network learns: the method's, or the settings'."""
        return self.settings.form or self.method.energy

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
    changed = {"energy": settings.form, "gate": settings.gate, "bregman": settings.bregman}
    return replace(method, **{name: value for name, value in changed.items() if value is not None})


@torch.no_grad()
def target(problem: Problem, pairs: Pairs) -> Tensor:
    """The target of an energy network `(S, B)`: a closed form of `guidance.KINDS`, "support", or "clean", beta Q(a_0).

    Each less what depends on the state alone, log E[exp(beta Q) | s] for "support", beta times the baseline else: it does
    not guide, and where states differ more than their actions do, a network learns nothing else. `settings.clamp`: closed
    forms to beta times the range of recorded advantages.
    """
    kind, beta, critic, noisy, t = problem.kind, problem.beta, problem.critic, pairs.noisy_action, pairs.t
    if kind == "support":
        q = pairs.candidate_q
        energy = guidance.support_energy(q, pairs.candidates, noisy, t, VP, beta, check=False)
        return energy - torch.logsumexp(beta * q, -1) + math.log(q.shape[-1])
    if kind == "clean":
        return beta * (critic.advantage(pairs.state, pairs.action) - pairs.baseline)
    moments = gaussian_posterior(problem.behavior, pairs.state, noisy, t)
    bounds = critic.bounds if problem.settings.clamp else None
    q_function = advantage_at(critic, pairs.state)
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


def energy_learner(
    problem: Problem, seeds: tuple[int, ...], name: str = "energy"
) -> tuple[Learner, EnergyNet | ShiftNet]:
    """The training of the energy or shift network of a method by its target and loss."""
    problem = replace(problem, method=applied(problem.method, problem.settings))
    problem.behavior.requires_grad_(False)
    problem.critic.requires_grad_(False)
    settings, method, (n, d) = problem.settings, problem.method, (problem.state.shape[1], problem.data.action.shape[1])
    sizes = (len(seeds), n, d, settings.width, settings.depth)
    if problem.kind.startswith("shift-"):
        net, make = ShiftNet(*sizes, problem.behavior.variance.shape[-1]), _shift
    else:
        net, make = EnergyNet(*sizes, VP, method.gate), _contrastive if problem.kind == "contrastive" else _regression
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
    """Regression on `target`; gives the network the scale of its targets."""
    settings, data, d = problem.settings, problem.data, problem.data.action.shape[1]
    supported, closed = problem.kind == "support", problem.kind in guidance.KINDS
    pairs = (_supported if supported else _recorded)(problem)
    size = problem.support.index.shape[1] if supported else len(data)

    def draw(random: Random) -> Draws:
        draws = random.diffusion(size, settings.batch, d)
        if supported:
            draws["which"] = random.index(problem.support.action.shape[2] + 1, settings.batch)
        return draws

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


def _recorded(problem: Problem) -> Callable[[Draws], Pairs]:
    """Recorded states and actions, noised."""
    state, action = problem.state, problem.data.action
    baseline = baselines(problem.behavior, problem.critic, state)
    rows = torch.arange(len(baseline), device=state.device).unsqueeze(1)

    def pairs(draws: Draws) -> Pairs:
        at, t = draws["index"], draws["t"]
        noisy = losses.diffuse(action[at], draws["noise"], t, VP)
        return Pairs(state[at], action[at], noisy, t, baseline[rows, at])

    return pairs


def _supported(problem: Problem) -> Callable[[Draws], Pairs]:
    """States with support actions, the recorded action among them; one of them noised."""
    support, rows = problem.support, problem.support.rows()
    candidates = torch.cat([problem.data.action[support.index].unsqueeze(2), support.action], 2)
    quality = advantages(problem.critic, problem.state, support.index, candidates)

    def pairs(draws: Draws) -> Pairs:
        at, t = draws["index"], draws["t"]
        clean = candidates[rows, at, draws["which"]]
        noisy = losses.diffuse(clean, draws["noise"], t, VP)
        state = problem.state[support.index[rows, at]]
        return Pairs(state, clean, noisy, t, candidates=candidates[rows, at], candidate_q=quality[rows, at])

    return pairs


def _contrastive(problem: Problem, net: EnergyNet, seeds: tuple[int, ...]):
    """Contrastive energy prediction over the support actions of a state."""
    support, rows, settings = problem.support, problem.support.rows(), problem.settings
    scaled_q = problem.beta * advantages(problem.critic, problem.state, support.index, support.action)
    net.scale.fill_(problem.beta)
    _, states, size, d = support.action.shape

    def pairs(draws: Draws) -> Pairs:
        action, t = support.action[rows, draws["index"]].flatten(1, 2), draws["t"].repeat_interleave(size, 1)
        here = problem.state[support.index[rows, draws["index"]]].repeat_interleave(size, 1)
        return Pairs(here, action, losses.diffuse(action, draws["noise"].flatten(1, 2), t, VP), t)

    def loss(draws: Draws):
        at = draws["index"]
        here, actions = problem.state[support.index[rows, at]], support.action[rows, at]
        return losses.contrastive_loss(net, here, actions, draws["noise"], draws["t"], scaled_q[rows, at], VP)

    def draw(random: Random) -> Draws:
        return random.diffusion(states, settings.groups, d) | {"noise": random.normal(settings.groups, size, d)}

    return draw, pairs, loss


def _shift(problem: Problem, net: ShiftNet, seeds: tuple[int, ...]):
    """Regression on a closed form of the shift ("taylor", "cubature"), in units of its size.

    A closed form can be computed at any state, action and time, unlike a target from samples: half of a batch's states are
    moved off the data (`settings.jitter` standard deviations; `goals`: and given another's position as goal), half of its
    clean actions are uniform in the box. With `settings.beyond` false the batch is recorded pairs.
    """
    settings, data, state = problem.settings, problem.data, problem.state
    n, d = state.shape[1], data.action.shape[1]
    form = problem.kind.removeprefix("shift-")
    closed = ClosedShift(form, problem.behavior, problem.critic, problem.beta)
    net.variance.copy_(problem.behavior.variance)
    number = torch.arange(settings.batch, device=state.device).unsqueeze(-1)
    moved, free = number < settings.batch // 2, number % 2 == 0

    def draw(random: Random) -> Draws:
        draws, batch = random.diffusion(len(data), settings.batch, d), settings.batch
        if settings.beyond:
            draws |= {"jitter": random.normal(batch, n), "uniform": random.uniform(batch, d)}
            draws["goal"] = random.index(len(data), batch)
        return draws

    def pairs(draws: Draws) -> Pairs:
        here, action = state[draws["index"]], data.action[draws["index"]]
        if settings.beyond:
            there = here + settings.jitter * draws["jitter"]
            if problem.goals:
                goal = data.state[draws["goal"], :GOAL_SIZE] - data.state_mean[-GOAL_SIZE:]
                there = torch.cat([there[..., :-GOAL_SIZE], goal / data.state_std[-GOAL_SIZE:]], -1)
            here, action = torch.where(moved, there, here), torch.where(free, 2 * draws["uniform"] - 1, action)
        return Pairs(here, action, losses.diffuse(action, draws["noise"], draws["t"], VP), draws["t"])

    @torch.no_grad()
    def regressed(batch: Pairs) -> Tensor:
        mean, _ = gaussian_posterior(problem.behavior, batch.state, batch.noisy_action, batch.t)
        return closed.shift(batch.state, batch.noisy_action, batch.t, mean) / net.size(batch.t).unsqueeze(-1)

    def loss(draws: Draws):
        batch = pairs(draws)
        return losses.shift_loss(net, batch.state, batch.noisy_action, batch.t, regressed(batch))

    squares = [regressed(batch).square().mean((-2, -1)) for batch in _first(problem, draw, pairs, seeds)]
    net.scale.copy_(torch.stack(squares).mean(0).sqrt().clamp(min=1e-6).unsqueeze(-1))
    return draw, pairs, loss
