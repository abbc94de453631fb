"""Policies that are networks of their own, the baselines': models and learners."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aepo.core import guidance, losses, sampler
from aepo.core.models import VP, ActionModel, Behavior, Critic, prior
from aepo.core.networks import MLP, TwinQ, VelocityNet, initialize
from aepo.data.datasets import Dataset
from aepo.learners.critics import Transitions, recorded_advantages
from aepo.learners.draws import Draws, Random, pick, weighted_index
from aepo.learners.support import Support, advantages
from aepo.learners.training import Learner, follow
from aepo.settings import CriticSettings, PolicySettings


class Flow(ActionModel):
    """Flow-matching model of S seeds: a velocity u(s, a_t, t) = eps - a along a_t = (1 - t) a + t eps."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__(seeds, state_dim, action_dim)
        self.velocity = VelocityNet(seeds, state_dim, action_dim, width, depth)

    def sample(self, state: Tensor, noise: Tensor, steps: int, *_: object) -> Tensor:
        """Midpoint steps from t = 1 to 0, two evaluations each, half as many as `steps`; there is no guidance."""
        count = max(1, steps // 2)
        action, times = noise, torch.linspace(1, 0, 2 * count + 1, device=noise.device).to(noise)
        for start, middle in zip(times[:-1:2], times[1::2], strict=True):
            half = action - self.velocity(state, action, start) / (2 * count)
            action = action - self.velocity(state, half, middle) / count
        return action.clamp(-1, 1)


class Pointwise(ActionModel):
    """One action a state, of S seeds: the mean of a Gaussian inside the box, or a deterministic policy; takes no noise."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__(seeds, state_dim, action_dim)
        self.net = MLP(seeds, state_dim, action_dim, width, depth, norm=True)
        self.log_std = nn.Parameter(torch.full((seeds, 1, action_dim), -1.0))

    def mean(self, state: Tensor) -> Tensor:
        """tanh of the network: standardised state `(S, B, n)` -> `(S, B, d)`."""
        return torch.tanh(self.net(state))

    def sample(self, state: Tensor, *_: object) -> Tensor:
        return self.mean(state)


AGREED_STATES = 2_048
WITH_CRITIC = {"deterministic": Pointwise, "diffusion-q": Behavior}
MODELS = {"weighted": Behavior, "flow": Flow, "gaussian": Pointwise, "resampled": Behavior} | WITH_CRITIC
RENEWED = ("weighted", "flow")  # kinds that learn from support actions, drawn anew in each round


class Trained(nn.Module):
    """A policy with its moving average, which acts, and, for the kinds of WITH_CRITIC, twin Q with its target copy."""

    def __init__(self, kind: str, seeds: int, sizes: tuple[int, ...], critic: tuple[int, ...], times: int = 1):
        """Sizes: of states, actions, width and depth of the policy's networks, and of its twin Q; `times`: `Behavior`'s."""
        super().__init__()
        sizes = (*sizes, times) if kind == "resampled" else sizes
        self.policy, self.average = MODELS[kind](seeds, *sizes), MODELS[kind](seeds, *sizes).requires_grad_(False)
        if kind == "resampled":
            self.average.register_buffer("agreement", torch.ones(seeds, 1))
        if kind in WITH_CRITIC:
            self.q, self.q_target = TwinQ(seeds, *critic), TwinQ(seeds, *critic).requires_grad_(False)

    def advantage(self, state: Tensor, action: Tensor) -> Tensor:
        """Q of the policy's own critic for K actions a state, state by state, as `Critic.advantage`: `(S, B K)`."""
        return self.q.minimum(state.repeat_interleave(action.shape[1] // state.shape[1], 1), action)


@dataclass(frozen=True)
class Problem:
    """What a policy of a kind of MODELS is trained for: data, inverse temperature, settings.

    `critic` trained: its advantages weigh (gaussian, weighted, flow). `support`: what weighted and flow learn from.
    `start`: the model that weighted and flow start from, None: from nothing. `times`: as `Trained` has it.
    """

    kind: str
    data: Dataset
    beta: float
    settings: PolicySettings
    critic_settings: CriticSettings
    critic: Critic | None = None
    support: Support | None = None
    start: ActionModel | None = None
    times: int = 1


def policy_learner(problem: Problem, seeds: tuple[int, ...], name: str = "policy") -> tuple[Learner, Trained]:
    """The training of a policy."""
    data, kind, settings, its_critic = problem.data, problem.kind, problem.settings, problem.critic_settings
    own, its = ((data.state.shape[1], data.action.shape[1], x.width, x.depth) for x in (settings, its_critic))
    module = Trained(kind, len(seeds), own, its, problem.times).to(data.state)
    initialize(module.policy, seeds, "policy")
    for model in (module.policy, module.average):
        model.scale(data.state_mean, data.state_std, data.action_low, data.action_high)
    if problem.start is not None:
        net = "velocity" if kind == "flow" else "noise_net"
        getattr(module.policy, net).load_state_dict(getattr(problem.start, net).state_dict())
    module.average.load_state_dict(module.policy.state_dict(), strict=kind != "resampled")  # which has more
    moving = [(module.average, module.policy, settings.ema_rate)]
    if kind in WITH_CRITIC:
        initialize(module.q, seeds, "q")
        module.q_target.load_state_dict(module.q.state_dict())
        moving.append((module.q_target, module.q, its_critic.target_rate))
    if kind == "deterministic":
        module.policy.log_std.requires_grad_(False)
    makers = dict.fromkeys(WITH_CRITIC, _actor_critic) | {"gaussian": _advantage_weighted, "resampled": _resampled}
    make = makers.get(kind, _energy_weighted)
    draw, loss = make(problem, module)
    trained = [p for p in module.parameters() if p.requires_grad]
    return Learner(name, seeds, module, trained, draw, loss, follow(moving)), module


def _advantage_weighted(problem: Problem, module: Trained):
    data, settings, state = problem.data, problem.settings, problem.data.standardize(problem.data.state)

    def draw(random: Random) -> Draws:
        return {"index": random.index(len(data), settings.batch)}

    def loss(draws: Draws):
        states, action, policy = state[draws["index"]], data.action[draws["index"]], module.policy
        with torch.no_grad():
            advantage = cast(Critic, problem.critic).advantage(states, action)
        mean = policy.mean(states)
        return losses.awr_loss(mean, policy.log_std, action, advantage, problem.beta, settings.weight_cap)

    return draw, loss


@torch.no_grad()
def chances(data: Dataset, critic: Critic, beta: float, settings: PolicySettings) -> Tensor:
    """Running sums of the chances of recorded pairs: `uniform_share` alike, the rest by w = min(exp(beta A), `weight_cap`).

    `(S, N)` in float64.
    """
    weight = torch.exp((beta * recorded_advantages(critic, data)).clamp(max=math.log(settings.weight_cap))).double()
    weight = (1 - settings.uniform_share) * weight / weight.mean(1, keepdim=True) + settings.uniform_share
    running = weight.cpu().cumsum(1).to(weight.device)  # on a GPU sums may differ from call to call
    return running / running[:, -1:]


@torch.no_grad()
def agreement(behavior: Behavior, critic: Critic, data: Dataset, seeds: Sequence[int]) -> Tensor:
    """How far the twin critics agree on the actions of a behavior: cov(Q1, Q2) / (var(Q1 - Q2) / 2), `(S, 1)`.

    Both over the cubature points of its first two moments at a state, and then over recorded states: what they share of the
    spread of Q against what they do not.
    """
    known = data.standardize(data.state)
    state = known[Random(seeds, "agreement", like=known).index(len(known), AGREED_STATES)[0]]
    points, log_weights = guidance.box_points(*prior(behavior, state), -1.0, 1.0)
    q = critic.q(state.repeat_interleave(points.shape[2], 1), points.flatten(1, 2)).view(2, *points.shape[:-1])
    q = q - (log_weights.exp() * q).sum(-1, keepdim=True)
    shared, apart = ((log_weights.exp() * x).sum((-2, -1)) for x in (q[0] * q[1], (q[0] - q[1]).square() / 2))
    return (shared.clamp(min=0) / apart.clamp(min=1e-12)).unsqueeze(-1)


def _resampled(problem: Problem, module: Trained):
    """Denoising of recorded pairs, drawn anew by `chances`: cloning of the law of pairs times (1 + w / mean w) / 2."""
    data, settings = problem.data, problem.settings
    state, chance = data.standardize(data.state), chances(data, cast(Critic, problem.critic), problem.beta, settings)

    def draw(random: Random) -> Draws:
        draws = random.diffusion(len(data), settings.batch, data.action.shape[1])
        return draws | {"index": weighted_index(chance, random.uniform(settings.batch))}

    def loss(draws: Draws):
        at = draws["index"]
        return losses.behavior_loss(module.policy.noise_net, state[at], data.action[at], draws["noise"], draws["t"], VP)

    return draw, loss


def _energy_weighted(problem: Problem, module: Trained):
    """Denoising or flow matching of support actions, each drawn with the probability softmax_j(beta Q_j) of its weight."""
    support, settings, critic = cast(Support, problem.support), problem.settings, cast(Critic, problem.critic)
    state = problem.data.standardize(problem.data.state)
    quality = advantages(critic, state, support.index, support.action)
    chance = torch.softmax(problem.beta * quality, -1).cumsum(-1)

    def draw(random: Random) -> Draws:
        draws = random.diffusion(chance.shape[1], settings.batch, support.action.shape[-1])
        return draws | {"which": random.uniform(settings.batch)}

    def loss(draws: Draws):
        at = draws["index"]
        which = (draws["which"].unsqueeze(-1) > pick(chance, at)).sum(-1).clamp(max=chance.shape[-1] - 1)
        action = pick(pick(support.action, at).flatten(0, 1), which.flatten()).view(*at.shape, -1)
        inputs = state[pick(support.index, at)], action, draws["noise"], draws["t"]
        if problem.kind == "flow":
            return losses.flow_loss(module.policy.velocity, *inputs)
        return losses.behavior_loss(module.policy.noise_net, *inputs, VP)

    return draw, loss


def _actor_critic(problem: Problem, module: Trained):
    """Twin Q on the policy's own next actions beside the policy: TD3+BC, or diffusion Q-learning."""
    settings, policy, d = problem.settings, module.policy, problem.data.action.shape[1]
    transitions = Transitions(problem.data, problem.critic_settings)

    def draw(random: Random) -> Draws:
        draws = random.diffusion(len(problem.data), settings.batch, d)
        draws |= {key: random.normal(settings.batch, d) for key in ("next_noise", "policy_noise")}
        return draws | transitions.draw_goals(random, settings.batch)

    def q_of(state: Tensor, action: Tensor) -> Tensor:
        """Q1 of proposed actions, whose gradient reaches the policy alone."""
        frozen = {name: p.detach() for name, p in module.q.named_parameters()}
        return functional_call(module.q, frozen, (state, action))[0]

    def next_actions(state: Tensor, noise: Tensor) -> Tensor:
        if problem.kind == "diffusion-q":
            return module.average.sample(state, noise, settings.chain)
        smoothing = (settings.target_noise * noise).clamp(-settings.noise_clip, settings.noise_clip)
        return (module.average.mean(state) + smoothing).clamp(-1, 1)

    def policy_loss(state: Tensor, action: Tensor, draws: Draws):
        if problem.kind == "deterministic":
            proposed = policy.mean(state)
            cloning = (proposed - action).square().mean((-2, -1))
            return losses.climbing_loss(cloning, q_of(state, proposed), settings.alpha)
        cloning, _ = losses.behavior_loss(policy.noise_net, state, action, draws["noise"], draws["t"], VP)
        noise_model, start = lambda a, t: policy.noise_net(state, a, t), draws["policy_noise"]
        proposed = sampler.solve(noise_model, start, VP, settings.chain, low=-1.0, high=1.0)  # with its gradient
        return losses.climbing_loss(cloning, q_of(state, proposed), settings.eta)

    def loss(draws: Draws):
        state, next_state, action, reward, ended, floor = transitions.batch(draws)
        with torch.no_grad():
            next_q = module.q_target.minimum(next_state, next_actions(next_state, draws["next_noise"]))
        td_loss, info = losses.td_loss(module.q, state, action, reward, ended, next_q, transitions.discount, floor)
        own_loss, more = policy_loss(state, action, draws)
        total = td_loss + own_loss
        return total, {"loss": total.detach(), **info, **more}

    return draw, loss
