"""The discount's rule on tiers made for it: fast and falling against slow and standing."""

from dataclasses import replace

import pytest
import torch

from aepo.data import tasks
from aepo.learners import discount

WALKER = replace(tasks.get("local-hopper-medium-expert"), continuing=False)


def recorded(data, episodes):
    """A dataset whose episodes have the given (reward a step, steps)."""
    reward = torch.cat([torch.full((steps,), float(value)) for value, steps in episodes])
    episode = torch.cat([torch.full((steps,), i) for i, (_, steps) in enumerate(episodes)])
    return replace(data, reward=reward, episode=episode)


def test_a_fast_gait_that_falls_asks_for_a_far_sight(data):
    """3.29 a step for 420 steps against 3.12 for 990: a discount of .99 prefers the fall, .997 does not."""
    tiers = recorded(data, [(3.29, 420)] * 10 + [(3.12, 990)] * 10)
    found = discount.agreements(tiers, WALKER)
    assert found[0.98] < 0.1
    assert found[0.99] < 0.1
    assert discount.chosen_discount(tiers, WALKER) == 0.995
    assert 3.29 * (1 - 0.99**420) > 3.12 * (1 - 0.99**990)
    assert 3.29 * (1 - 0.995**420) < 3.12 * (1 - 0.995**990)


def test_where_nobody_falls_the_least_discount_will_do(data):
    tiers = recorded(data, [(1.0 + 0.1 * i, 1000) for i in range(10)])
    assert discount.chosen_discount(tiers, WALKER) == discount.DISCOUNTS[0]


def test_equal_returns_and_one_long_walk(data):
    assert discount.chosen_discount(recorded(data, [(1.0, 50)] * 4), WALKER) == discount.DISCOUNTS[0]
    walk = replace(WALKER, continuing=True, horizon=100)
    late = recorded(data, [(0.0, 90), (1.0, 10), (1.0, 5), (0.0, 95)])
    assert discount.agreements(late, walk)[0.9999] == pytest.approx(1.0)
    assert discount.agreements(late, walk)[0.98] < 0.9, "a late reward counts less than an early one"
    rest = recorded(data, [(0.0, 90), (1.0, 10), (1.0, 5), (0.0, 95), (0.3, 30)])
    assert discount.agreements(rest, walk).equals(discount.agreements(late, walk)), "a part of a window is no episode"
