"""The shared critics: expectile (IQL), and the in-support softmax of QGPO; what their targets are made of."""

import torch
from torch import Tensor

from aepo.core import losses
from aepo.core.models import Behavior, Critic
from aepo.core.networks import initialize
from aepo.data.datasets import Dataset, return_floor
from aepo.files import StudyError
from aepo.learners.draws import Draws, Random, pick
from aepo.learners.hindsight import Hindsight
from aepo.learners.support import sample_actions
from aepo.learners.training import Learner, follow
from aepo.settings import CriticSettings


class Transitions:
    """Recorded transitions as a critic learns from them, packed so that a batch is one gather.

    The share `settings.hindsight` of a batch, its last rows, has hindsight goals.
    """

    def __init__(self, data: Dataset, settings: CriticSettings):
        self.share, self.floored, scale = settings.hindsight, settings.return_floor, reward_scale(data, settings)
        if not 0 <= self.share <= 1:
            raise StudyError(f"critic: hindsight is a share of a batch: give 0 to 1, not {self.share}")
        assert settings.discount is not None  # the rule's, where none was set (`discount.chosen_discount`)
        n, d, self.discount = data.state.shape[1], data.action.shape[1], settings.discount
        self.sizes = [n, n, d, 3]
        floor = return_floor(data, self.discount) if self.floored else torch.full_like(data.reward, -torch.inf)
        states = [data.standardize(data.state), data.standardize(data.next_state)]
        numbers = torch.stack([scale * data.reward, data.terminated, scale * floor], 1)
        self.packed = torch.cat([*states, data.action, numbers], 1)
        self.hindsight = Hindsight(data, self.discount, settings.goal_radius, scale) if self.share else None

    def batch(self, draws: Draws) -> tuple[Tensor, ...]:
        """State and next state standardised, action, reward scaled, terminated, floor of a step's draws."""
        state, next_state, action, numbers = self.packed[draws["index"]].split(self.sizes, -1)
        reward, terminated, floor = numbers.unbind(-1)
        if self.hindsight:
            rows = slice(state.shape[1] - draws["ahead"].shape[1], None)
            new = self.hindsight.relabel(draws["index"][:, rows], draws["ahead"], state[:, rows], next_state[:, rows])
            state[:, rows], next_state[:, rows], reward[:, rows] = new[:3]
            if self.floored:
                floor[:, rows] = new[3]
        return state, next_state, action, reward, terminated, floor

    def draw_goals(self, random: Random, batch: int) -> Draws:
        """Uniform numbers `ahead` `(count, S, batch share)` that choose hindsight goals; nothing without them."""
        return {"ahead": random.uniform(int(batch * self.share))} if self.hindsight else {}


def reward_scale(data: Dataset, settings: CriticSettings) -> float:
    """The factor on rewards: as set, or the one that makes Q about 1, (1 - discount) / mean |r|; 1 where all r are 0."""
    if settings.reward_scale is not None:
        return settings.reward_scale
    assert settings.discount is not None
    size = float(data.reward.double().abs().mean())
    return (1 - settings.discount) / size if size > 0 else 1.0


def critic_learner(
    data: Dataset, seeds: tuple[int, ...], settings: CriticSettings, behavior: Behavior | None = None
) -> tuple[Learner, Critic]:
    """Implicit Q-learning: expectile V on the target Q, twin Q on max(r + discount V(s'), floor); with a behavior, QGPO's.

    That is V(s') = sum_j softmax(q_j / tau)_j q_j, q_j of `settings.support` behavior samples at s', drawn once for the
    recorded goals: under hindsight goals they are actions that the behavior takes there all the same.
    """
    sizes = (data.state.shape[1], data.action.shape[1], settings.width, settings.depth)
    critic, transitions = Critic(len(seeds), *sizes).to(data.state), Transitions(data, settings)
    initialize(critic.q, seeds, "q")
    initialize(critic.value, seeds, "value")
    critic.q_target.load_state_dict(critic.q.state_dict())
    size = settings.support
    if behavior is not None:
        following = data.standardize(data.next_state)
        random = Random(seeds, "next-support", like=following)
        support = sample_actions(behavior, following.expand(len(seeds), -1, -1), size, settings.support_steps, random)

    def values(state: Tensor, next_state: Tensor, action: Tensor, index: Tensor):
        """V(s'), and the loss of V with its info."""
        with torch.no_grad():
            if behavior is None:
                q, next_value = critic.q_target.minimum(state, action), critic.value(next_state)
            else:
                actions = pick(support, index).flatten(1, 2)
                q = critic.q_target.minimum(next_state.repeat_interleave(size, 1), actions).view(*index.shape, size)
                next_value = losses.in_support_value(q, settings.temperature)
        if behavior is None:
            return next_value, *losses.value_loss(critic.value, state, q, settings.expectile)
        value = critic.value(next_state)
        loss = (value - next_value).square().mean(-1)
        info = {"value_loss": loss, "value": value.mean(-1), "advantage_std": q.std(-1).mean(-1)}
        return next_value, loss, {key: x.detach() for key, x in info.items()}

    def draw(random: Random) -> Draws:
        return {"index": random.index(len(data), settings.batch)} | transitions.draw_goals(random, settings.batch)

    def loss(draws: Draws):
        state, next_state, action, reward, ended, floor = transitions.batch(draws)
        next_value, value_loss, value_info = values(state, next_state, action, draws["index"])
        td_loss, info = losses.td_loss(critic.q, state, action, reward, ended, next_value, transitions.discount, floor)
        return value_loss + td_loss, value_info | info

    parameters = [*critic.q.parameters(), *critic.value.parameters()]
    after_step = follow([(critic.q_target, critic.q, settings.target_rate)])
    return Learner("critic", seeds, critic, parameters, draw, loss, after_step), critic


@torch.no_grad()
def recorded_advantages(critic: Critic, data: Dataset) -> Tensor:
    """The advantage of every recorded action `(S, N)`."""
    seeds, rows = len(critic.std), 8_192
    parts = [
        critic.advantage(data.standardize(state).expand(seeds, -1, -1), action.expand(seeds, -1, -1))
        for state, action in zip(data.state.split(rows), data.action.split(rows), strict=True)
    ]
    return torch.cat(parts, 1)


def finish_critic(critic: Critic, data: Dataset) -> None:
    """Set the scale and bounds of the advantage from every recorded action."""
    advantage = recorded_advantages(critic, data)
    critic.std.copy_(advantage.std(1, keepdim=True))
    critic.lowest.copy_(advantage.amin(1, keepdim=True) / critic.std)
    critic.highest.copy_(advantage.amax(1, keepdim=True) / critic.std)
