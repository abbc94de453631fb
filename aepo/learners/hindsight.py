"""Hindsight goals: transitions of a goal-reaching walk as if the goal had been where it came by later."""

import math

import torch
from torch import Tensor

from aepo.data.datasets import Dataset
from aepo.files import StudyError

GOAL_SIZE = 2  # mazes: a state begins with the position (x, y) and ends with the goal (x, y)
EXPLAINED = 0.5  # least share of recorded rewards that distances to the goal must explain


class Hindsight:
    """Goals put in place of recorded ones, and what follows from them (Andrychowicz et al. 2017, arXiv 1707.01495).

    For a transition i the goal becomes the position after transition j >= i of the same episode, j - i geometric with mean
    discount/(1 - discount), cut at the episode's end. The reward is the environment's: 1 within `radius` of the goal, or
    exp(-distance) where recorded rewards are not all 0 or 1. The floor of Q is discount^(j - i), collected on arrival.
    """

    def __init__(self, data: Dataset, discount: float, radius: float, scale: float):
        self.discount, self.radius, self.scale = discount, radius, scale
        self.position = data.next_state[:, :GOAL_SIZE]
        self.mean, self.std = data.state_mean[-GOAL_SIZE:], data.state_std[-GOAL_SIZE:]
        self.last = torch.bincount(data.episode).cumsum(0)[data.episode] - 1
        self.dense = not set(data.reward.unique().tolist()) <= {0.0, 1.0}
        paid = data.reward > 0
        reward = self._reward(self.position[paid], data.state[paid, -GOAL_SIZE:])
        explained = (reward - data.reward[paid]).abs().le(0.05).float().mean() if paid.any() else 1.0
        if explained < EXPLAINED or (data.reward < 0).any():
            what = f"rewards that are {'exp(-distance)' if self.dense else f'1 within {radius} of it'}"
            needs = f"states that begin with a position (x, y) and end with the goal (x, y), and {what}"
            holds = (
                f"here that holds of {100 * explained:.0f}% of the rewards above 0, the least is {data.reward.min():g}"
            )
            raise StudyError(f"critic: hindsight needs {needs}; {holds}: set hindsight to 0")

    def _reward(self, position: Tensor, goal: Tensor) -> Tensor:
        """The environment's reward at positions `(..., 2)` for goals `(..., 2)`."""
        distance = (position - goal).norm(dim=-1)
        return torch.exp(-distance) if self.dense else (distance <= self.radius).to(distance)

    def relabel(self, index: Tensor, uniform: Tensor, state: Tensor, next_state: Tensor) -> tuple[Tensor, ...]:
        """State, next state (standardised) `(S, B, n)`, reward, floor (scaled) under goals by uniform numbers `(S, B)`."""
        steps = (torch.log1p(-uniform) / math.log(self.discount)).long()
        reached = torch.minimum(index + steps, self.last[index])
        goal = self.position[reached]
        reward = self._reward(self.position[index], goal)
        shown = (goal - self.mean) / self.std
        state, next_state = (torch.cat([x[..., :-GOAL_SIZE], shown], -1) for x in (state, next_state))
        floor = self.discount ** (reached - index).to(reward)
        return state, next_state, self.scale * reward, self.scale * floor
