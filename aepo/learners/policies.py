"""Policies that are networks of their own, the baselines': their models, what each learns from, its learner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aepo.core import losses, sampler
from aepo.core.models import VP, ActionModel, Behavior, Critic, Guide
from aepo.core.networks import MLP, TwinQ, VelocityNet, initialize
from aepo.data.datasets import Dataset
from aepo.learners.critics import Transitions
from aepo.learners.support import Support, advantages, diffusion_draws
from aepo.learners.training import Draws, Learner, stack_draws
from aepo.settings import CriticSettings, PolicySettings


class Flow(ActionModel):
    """Flow-matching model of S seeds: a velocity u(s, a_t, t) = eps - a along a_t = (1 - t) a + t eps."""

    def __init__(self, seeds: int, state_dim: int, action_dim: int, width: int, depth: int):
        super().__init__(seeds, state_dim, action_dim)
        self.velocity = VelocityNet(seeds, state_dim, action_dim, width, depth)

    def sample(self, state: Tensor, noise: Tensor, steps: int, guide: Guide | None = None, scale=0.0) -> Tensor:
        """Midpoint steps from t = 1 to 0, two evaluations each, half as many as `steps`; there is no guidance."""
        count = max(1, steps // 2)
        action, times = noise, torch.linspace(1, 0, 2 * count + 1).to(noise)
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

    def sample(self, state: Tensor, noise: Tensor, steps: int, guide: Guide | None = None, scale=0.0) -> Tensor:
        return self.mean(state)


MODELS = {
    "weighted": Behavior,
    "flow": Flow,
    "gaussian": Pointwise,
    "deterministic": Pointwise,
    "diffusion-q": Behavior,
}
WITH_CRITIC = ("deterministic", "diffusion-q")


class Trained(nn.Module):
    """A policy with its moving average, which acts, and, for the kinds of WITH_CRITIC, twin Q with its target copy."""

    def __init__(
        self, kind: str, seeds: int, state_dim: int, action_dim: int, sizes: tuple[int, int], critic: tuple[int, int]
    ):
        """`sizes` and `critic`: width and depth of the policy's networks, and of its twin Q."""
        super().__init__()
        self.policy = MODELS[kind](seeds, state_dim, action_dim, *sizes)
        self.average = MODELS[kind](seeds, state_dim, action_dim, *sizes).requires_grad_(False)
        if kind in WITH_CRITIC:
            self.q = TwinQ(seeds, state_dim, action_dim, *critic)
            self.q_target = TwinQ(seeds, state_dim, action_dim, *critic).requires_grad_(False)

    def advantage(self, state: Tensor, action: Tensor) -> Tensor:
        """Q of the policy's own critic for K actions a state, state by state, as `Critic.advantage`: `(S, B K)`."""
        return self.q.minimum(state.repeat_interleave(action.shape[1] // state.shape[1], 1), action)


RENEWED = ("weighted", "flow")  # kinds that learn from support actions, drawn anew in each round


def policy_learner(
    kind: str,
    data: Dataset,
    seeds: tuple[int, ...],
    settings: PolicySettings,
    critic_settings: CriticSettings,
    beta: float,
    critic: Critic | None = None,
    support: Support | None = None,
    start: ActionModel | None = None,
    name: str = "policy",
) -> tuple[Learner, Trained]:
    """The training of a policy of a kind of MODELS for inverse temperature beta.

    `critic` trained: its advantages weigh (gaussian, weighted, flow). `support`: what weighted and flow learn from.
    `start`: the model that weighted and flow start from, None: from nothing.
    """
    n, d = data.state.shape[1], data.action.shape[1]
    sizes = (settings.width, settings.depth), (critic_settings.width, critic_settings.depth)
    module = Trained(kind, len(seeds), n, d, *sizes).to(data.state)
    initialize(module.policy, seeds, "policy")
    for model in (module.policy, module.average):
        model.scale(data.state_mean, data.state_std, data.action_low, data.action_high)
    if start is not None:
        net = "velocity" if kind == "flow" else "noise_net"
        getattr(module.policy, net).load_state_dict(getattr(start, net).state_dict())
    module.average.load_state_dict(module.policy.state_dict())
    if kind in WITH_CRITIC:
        initialize(module.q, seeds, "q")
        module.q_target.load_state_dict(module.q.state_dict())
        draw, loss = _actor_critic(kind, module, data, settings, critic_settings)
    elif kind == "gaussian":
        draw, loss = _advantage_weighted(module, data, critic, beta, settings)
    else:
        draw, loss = _energy_weighted(kind, module, data, critic, support, beta, settings)
    if kind == "deterministic":
        module.policy.log_std.requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    moving = _pairs(module.average, module.policy, settings.ema_rate)
    if kind in WITH_CRITIC:
        moving += _pairs(module.q_target, module.q, critic_settings.target_rate)

    def after_step() -> None:
        for target, online, rate in moving:
            torch._foreach_lerp_(target, online, rate)

    return Learner(name, seeds, module, trained, draw, loss, after_step), module


def _pairs(target: nn.Module, online: nn.Module, rate: float) -> list[tuple[list[Tensor], list[Tensor], float]]:
    return [(list(target.parameters()), [p.detach() for p in online.parameters()], rate)]


def _advantage_weighted(module: Trained, data: Dataset, critic: Critic, beta: float, settings: PolicySettings):
    state = data.standardize(data.state)

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        shape = (count, settings.batch)
        return {
            "index": stack_draws(generators, lambda g: torch.randint(len(data), shape, generator=g, device=g.device))
        }

    def loss(draws: Draws):
        states, action = state[draws["index"]], data.action[draws["index"]]
        with torch.no_grad():
            advantage = critic.advantage(states, action)
        policy = module.policy
        return losses.awr_loss(policy.mean(states), policy.log_std, action, advantage, beta, settings.weight_cap)

    return draw, loss


def _energy_weighted(
    kind: str,
    module: Trained,
    data: Dataset,
    critic: Critic,
    support: Support,
    beta: float,
    settings: PolicySettings,
):
    """Denoising or flow matching of support actions, each drawn with the probability softmax_j(beta Q_j) of its weight."""
    state = data.standardize(data.state)
    chance = torch.softmax(beta * advantages(critic, state, support.index, support.action), -1).cumsum(-1)
    rows = torch.arange(len(chance), device=chance.device).unsqueeze(1)
    states, d = chance.shape[1], data.action.shape[1]

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        draws = diffusion_draws(generators, count, settings.batch, states, d, state.dtype)
        shape = (count, settings.batch)
        return draws | {
            "which": stack_draws(
                generators, lambda g: torch.rand(shape, generator=g, device=g.device, dtype=state.dtype)
            )
        }

    def loss(draws: Draws):
        index = draws["index"]
        which = (draws["which"].unsqueeze(-1) > chance[rows, index]).sum(-1).clamp(max=chance.shape[-1] - 1)
        action, here = support.action[rows, index, which], state[support.index[rows, index]]
        if kind == "flow":
            return losses.flow_loss(module.policy.velocity, here, action, draws["noise"], draws["t"])
        return losses.behavior_loss(module.policy.noise_net, here, action, draws["noise"], draws["t"], VP)

    return draw, loss


def _actor_critic(
    kind: str,
    module: Trained,
    data: Dataset,
    settings: PolicySettings,
    critic_settings: CriticSettings,
):
    """Twin Q on the policy's own next actions beside the policy: TD3+BC, or diffusion Q-learning."""
    transitions, d = Transitions(data, critic_settings), data.action.shape[1]

    def draw(generators: Sequence[torch.Generator], count: int) -> Draws:
        draws = diffusion_draws(generators, count, settings.batch, len(data), d, data.state.dtype)
        shape = (count, settings.batch, d)
        for key in ("next_noise", "policy_noise"):
            draws[key] = stack_draws(generators, lambda g: torch.randn(shape, generator=g, device=g.device))
        draws |= transitions.draw_goals(generators, count, settings.batch)
        return {key: value.to(data.state) if value.is_floating_point() else value for key, value in draws.items()}

    def q_of(state: Tensor, action: Tensor) -> Tensor:
        """Q1 of proposed actions, whose gradient reaches the policy alone."""
        frozen = {name: p.detach() for name, p in module.q.named_parameters()}
        return functional_call(module.q, frozen, (state, action))[0]

    def loss(draws: Draws):
        state, next_state, action, reward, terminated, floor = transitions.batch(draws)
        with torch.no_grad():
            if kind == "deterministic":
                smoothing = (settings.target_noise * draws["next_noise"]).clamp(
                    -settings.noise_clip, settings.noise_clip
                )
                next_action = (module.average.mean(next_state) + smoothing).clamp(-1, 1)
            else:
                next_action = module.average.sample(next_state, draws["next_noise"], settings.chain)
            next_q = module.q_target.minimum(next_state, next_action)
        td_loss, info = losses.td_loss(
            module.q, state, action, reward, terminated, next_q, critic_settings.discount, floor
        )
        if kind == "deterministic":
            proposed = module.policy.mean(state)
            policy_loss, more = losses.td3bc_loss(proposed, action, q_of(state, proposed), settings.alpha)
        else:
            cloning, _ = losses.behavior_loss(module.policy.noise_net, state, action, draws["noise"], draws["t"], VP)
            proposed = _chain(module.policy, state, draws["policy_noise"], settings.chain)
            policy_loss, more = losses.diffusion_ql_loss(cloning, q_of(state, proposed), settings.eta)
        total = td_loss + policy_loss
        return total, {"loss": total.detach(), **info, **more}

    return draw, loss


def _chain(policy: Behavior, state: Tensor, noise: Tensor, steps: int) -> Tensor:
    """The policy's own sampler with its gradient: what diffusion Q-learning improves, `(S, B, d)`."""
    return sampler.solve(lambda a, t: policy.noise_net(state, a, t), noise, VP, steps, low=-1.0, high=1.0)
