"""Drawing and judging data of any dimensions: maze maps, principal components, figures, oddities."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from aepo.core import models, networks
from aepo.data import datasets, describe, tasks
from aepo.data.datasets import Dataset
from aepo.learners.actor import Actor
from aepo.study import figures, results, tables, views
from aepo.study.policy import Policy


def dataset(n=5, d=3, episodes=4, steps=30):
    """Random transitions of given dimensions; the first two components of states vary most."""
    g = torch.Generator().manual_seed(0)
    size = torch.linspace(2, 1, n)
    state = torch.randn(episodes, steps + 1, n, generator=g) * size
    count = episodes * steps
    last = (torch.arange(steps) == steps - 1).float().repeat(episodes)
    rows = state[:, :-1].reshape(count, n)
    return Dataset(
        dataset_id="test-v0",
        content_hash="0",
        state=rows,
        action=2 * torch.rand(count, d, generator=g) - 1,
        reward=torch.rand(count, generator=g),
        next_state=state[:, 1:].reshape(count, n),
        terminated=torch.zeros(count),
        truncated=last,
        episode=torch.arange(episodes).repeat_interleave(steps),
        state_mean=rows.mean(0),
        state_std=rows.std(0).clamp(min=1e-3),
        action_low=-torch.ones(d),
        action_high=torch.ones(d),
        reference_scores=None,
    )


def test_the_plane_holds_the_most_variance():
    data = dataset(n=3)
    mixed = data.state[:, :1] @ torch.ones(1, 3) + 0.1 * data.state
    data = replace(data, state=mixed, state_mean=mixed.mean(0), state_std=mixed.std(0))
    plane = views.view(tasks.get("d4rl-kitchen-complete-v0"), data)
    shown = plane.project(mixed.numpy())
    assert shown.shape == (len(data), 2)
    standard = ((mixed - data.state_mean) / data.state_std).double()
    values = torch.linalg.eigvalsh(torch.cov(standard.T, correction=0)).flip(0)[:2]
    assert np.allclose(shown.var(0), values, rtol=1e-6)
    assert plane.project(mixed.numpy().reshape(4, 30, 3)).shape == (4, 30, 2)


def test_a_single_number_has_a_plane_too():
    assert np.ptp(views.Plane(dataset(n=1)).project(dataset(n=1).state.numpy())[:, 1]) == 0


@pytest.mark.parametrize(("name", "goal"), [("maze2d-umaze", (-1, 1)), ("antmaze-umaze-v1", (-4, 4))])
def test_a_maze_is_drawn_with_its_goal(name, goal):
    view = views.view(tasks.get(name), None)
    assert tuple(view.goal) == goal
    figure, ax = plt.subplots()
    view.draw(ax)
    assert len(ax.patches) == 18 + 1  # walls of the U-maze, and the goal
    assert ax.get_xlim() == (-2.5 * view.scale, 2.5 * view.scale)
    plt.close(figure)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:matplotlib")  # fields of untrained networks are all zero
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 1), (4, 2), (6, 5)])
def test_figures_take_any_dimensions(n, d):
    data = dataset(n, d)
    assert views.Plane(data).project(data.state.numpy()).shape == (len(data), 2)
    behavior = models.Behavior(1, n, d, 8, 1)
    behavior.low.fill_(-2.0), behavior.high.fill_(2.0), behavior.state_std.fill_(1.0)
    energy = networks.EnergyNet(1, n, d, 8, 1, models.VP).requires_grad_(False)
    policy = Policy(Actor(behavior.requires_grad_(False), None, energy, 1.0, 2, 1))
    unguided = Policy(Actor(behavior, None, None, 0.0, 2, 1))
    drawn = [
        figures.action_match(data.action.numpy(), data.action.numpy()),
        figures.guidance_field(policy, data.state[0].numpy()),
    ]
    drawn += [figures.guidance_field(unguided, data.state[0].numpy())] if d == 2 else []
    for figure in drawn:
        figure.canvas.draw()
        plt.close(figure)


def test_what_was_collected_next_stops_at_an_episodes_end_unless_the_walk_goes_on():
    data = replace(dataset(episodes=2, steps=2), reward=torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert datasets.collected_next(data, 0.5).tolist() == [2.0, 2.0, 8.0, 8.0]
    assert datasets.collected_next(data, 0.5, along=True).tolist() == [4.0, 6.0, 8.0, 8.0]
    terminated = replace(data, terminated=torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert datasets.collected_next(terminated, 0.5, along=True).tolist() == [2.0, 2.0, 8.0, 8.0]


def test_oddities_are_said_and_nothing_else():
    plain = dataset()
    assert describe.oddities(plain) == []
    state = plain.state.clone()
    state[:, 2] = 3.0
    action = torch.where(plain.action > 0.5, 1.0, plain.action)
    action[:, 1] = 0.25
    odd = replace(plain, state=state, action=action, warnings=("all 120 rewards are 1",))
    odd = replace(odd, terminated=(torch.arange(len(plain)) == 3).float(), truncated=torch.zeros(len(plain)))
    said = "\n".join(describe.oddities(odd))
    for part in (
        "1 of 5 observation dimensions never change (2)",
        "action dimensions 1 never change",
        "at a bound of the box",
        "all 120 rewards are 1",
        "1 steps terminate inside an episode",
        "neither terminate nor are truncated",
    ):
        assert part in said
    assert describe.oddities(replace(plain, episode=torch.arange(len(plain))))[0].startswith(
        "120 of 120 episodes have one step"
    )


def test_a_table_without_scores_shows_returns():
    import pandas as pd

    rows = [
        dict.fromkeys(results.COLUMNS, 0)
        | {"method": m, "variant": "", "checkpoint": "last", "episode": e, "return": e}
        for m in ("dataset", "bc")
        for e in range(3)
    ]
    frame = pd.DataFrame(rows).assign(score=np.nan, success=pd.array([None] * 6, dtype="Int64"))
    table = tables.task_table(frame)
    shown = tables.readable_task_table(table)
    assert set(shown["score"]) == set(shown["success"]) == {"-"}
    assert shown["return"].iloc[0].startswith("1.0 [")
