"""The shared critics: expectile (IQL), and the in-support softmax of QGPO; what their targets are made of."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from aepo.core import losses
from aepo.core.models import Behavior, Critic
from aepo.core.networks import initialize
from aepo.data.datasets import Dataset, return_floor
from aepo.files import StudyError
from aepo.learners.draws import Draws, Random
from aepo.learners.hindsight import Hindsight
from aepo.learners.support import sample_actions
from aepo.learners.training import Learner, follow
from aepo.settings import CriticSettings


class Transitions:
    """Recorded transitions as a critic learns from them, packed so that a batch is one gather.

    A batch is state, next_state standardised, action, reward scaled, terminated, floor (see `datasets.return_floor`; -inf
    where the settings have none): `(S, B, n)`, `(S, B, n)`, `(S, B, d)`, `(S, B)`, `(S, B)`, `(S, B)`. The share
    `settings.hindsight` of it, its last rows, has hindsight goals.
    """

    def __init__(self, data: Dataset, settings: CriticSettings):
        scale = reward_scale(data, settings)
        floor = torch.full_like(data.reward, -torch.inf)
        if settings.return_floor:
            floor = scale * return_floor(data, settings.discount)
        self.sizes = [data.state.shape[1], data.state.shape[1], data.action.shape[1], 1, 1, 1]
        columns = [scale * data.reward, data.terminated, floor]
        states = [data.standardize(data.state), data.standardize(data.next_state)]
        self.packed = torch.cat([*states, data.action, torch.stack(columns, 1)], 1)
        if not 0 <= settings.hindsight <= 1:
            raise StudyError(f"critic: hindsight is a share of a batch: give 0 to 1, not {settings.hindsight}")
        self.share = settings.hindsight
        self.hindsight = Hindsight(data, settings.discount, settings.goal_radius, scale) if self.share else None
        self.floored = settings.return_floor

    def __len__(self) -> int:
        return len(self.packed)

    def batch(self, draws: Draws) -> tuple[Tensor, ...]:
        """The transitions of a step's draws, `index` `(S, B)` and where there is hindsight `ahead`, `(S, B share)`."""
        *wide, reward, terminated, floor = self.packed[draws["index"]].split(self.sizes, -1)
        state, next_state, action = wide
        reward, terminated, floor = reward.squeeze(-1), terminated.squeeze(-1), floor.squeeze(-1)
        if self.hindsight:
            rows = slice(state.shape[1] - draws["ahead"].shape[1], None)
            new = self.hindsight.relabel(draws["index"][:, rows], draws["ahead"], state[:, rows], next_state[:, rows])
            state[:, rows], next_state[:, rows], reward[:, rows] = new[:3]
            if self.floored:
                floor[:, rows] = new[3]
        return state, next_state, action, reward, terminated, floor

    def draw(self, random: Random, batch: int) -> Draws:
        """What batches are made from: `index` `(count, S, batch)`, and what `draw_goals` adds."""
        return {"index": random.index(len(self), batch)} | self.draw_goals(random, batch)

    def draw_goals(self, random: Random, batch: int) -> Draws:
        """Uniform numbers `ahead` `(count, S, batch share)` that choose hindsight goals; nothing without them."""
        return {"ahead": random.uniform(int(batch * self.share))} if self.hindsight else {}


def reward_scale(data: Dataset, settings: CriticSettings) -> float:
    """The factor on rewards: as set, or the one that makes Q about 1, (1 - discount) / mean |r|; 1 where all r are 0."""
    if settings.reward_scale is not None:
        return settings.reward_scale
    size = float(data.reward.double().abs().mean())
    return (1 - settings.discount) / size if size > 0 else 1.0


def critic_learner(data: Dataset, seeds: tuple[int, ...], settings: CriticSettings) -> tuple[Learner, Critic]:
    """Implicit Q-learning: expectile V on the target Q, twin Q on max(r + discount V(s'), floor)."""

    def backup(critic: Critic, state: Tensor, next_state: Tensor, action: Tensor, index: Tensor):
        with torch.no_grad():
            q = critic.q_target.minimum(state, action)
            next_value = critic.value(next_state)
        return next_value, *losses.value_loss(critic.value, state, q, settings.expectile)

    return _learner(data, seeds, settings, backup)


def softmax_critic_learner(
    data: Dataset, behavior: Behavior, seeds: tuple[int, ...], settings: CriticSettings
) -> tuple[Learner, Critic]:
    """QGPO's critic: twin Q on r + discount sum_j softmax(q_j / tau)_j q_j, q_j of behavior samples at s'.

    V(s') regresses on that sum. `settings.support` samples at each next state, `settings.temperature` tau (see
    `losses.in_support_value`). They are drawn once, for the recorded goals: under hindsight goals they are actions that the
    behavior takes there all the same.
    """
    size, following = settings.support, data.standardize(data.next_state)
    random = Random(seeds, "next-support", like=following)
    support = sample_actions(behavior, following.expand(len(seeds), -1, -1), size, settings.support_steps, random)
    rows = torch.arange(len(seeds), device=following.device).unsqueeze(1)

    def backup(critic: Critic, state: Tensor, next_state: Tensor, action: Tensor, index: Tensor):
        with torch.no_grad():
            actions = support[rows, index].flatten(1, 2)
            q = critic.q_target.minimum(next_state.repeat_interleave(size, 1), actions).view(*index.shape, size)
            next_value = losses.in_support_value(q, settings.temperature)
        value = critic.value(next_state)
        loss = (value - next_value).square().mean(-1)
        info = {"value_loss": loss, "value": value.mean(-1), "advantage_std": q.std(-1).mean(-1)}
        return next_value, loss, {key: x.detach() for key, x in info.items()}

    return _learner(data, seeds, settings, backup)


def _learner(
    data: Dataset, seeds: tuple[int, ...], settings: CriticSettings, backup: Callable
) -> tuple[Learner, Critic]:
    """A critic whose `backup` gives V(s') for the targets of Q, and the loss of V with its info."""
    sizes = (data.state.shape[1], data.action.shape[1], settings.width, settings.depth)
    critic, transitions = Critic(len(seeds), *sizes).to(data.state), Transitions(data, settings)
    initialize(critic.q, seeds, "q")
    initialize(critic.value, seeds, "value")
    critic.q_target.load_state_dict(critic.q.state_dict())

    def draw(random: Random) -> Draws:
        return transitions.draw(random, settings.batch)

    def loss(draws: Draws):
        state, next_state, action, reward, terminated, floor = transitions.batch(draws)
        next_value, value_loss, value_info = backup(critic, state, next_state, action, draws["index"])
        discount = settings.discount
        td_loss, info = losses.td_loss(critic.q, state, action, reward, terminated, next_value, discount, floor)
        return value_loss + td_loss, value_info | info

    parameters = [*critic.q.parameters(), *critic.value.parameters()]
    after_step = follow([(critic.q_target, critic.q, settings.target_rate)])
    return Learner("critic", seeds, critic, parameters, draw, loss, after_step), critic


@torch.no_grad()
def finish_critic(critic: Critic, data: Dataset, batch: int = 8_192) -> None:
    """Set the scale and bounds of the advantage from every recorded action."""
    seeds = critic.std.shape[0]
    parts = []
    for start in range(0, len(data), batch):
        state = data.standardize(data.state[start : start + batch]).expand(seeds, -1, -1)
        parts.append(critic.advantage(state, data.action[start : start + batch].expand(seeds, -1, -1)))
    advantage = torch.cat(parts, 1)
    scale = advantage.std(1, keepdim=True)
    critic.std.copy_(scale)
    critic.lowest.copy_(advantage.amin(1, keepdim=True) / scale)
    critic.highest.copy_(advantage.amax(1, keepdim=True) / scale)


def signal(log: pd.DataFrame) -> pd.Series:
    """How well a critic can tell recorded actions apart, by seed: std(Q - V) over the root mean square of its TD error.

    At the last rows of its log, whose `td_loss` is the sum of the twins'. About 1 or below: what ranks actions is mostly
    error, and to follow it off the data can be worse than to clone.
    """
    last = log[log["step"] == log["step"].max()].set_index("seed")
    return last["advantage_std"] / (last["td_loss"] / 2) ** 0.5
