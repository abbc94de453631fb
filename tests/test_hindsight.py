"""Hindsight goals: what is relabelled, with which reward, and that older artefacts keep their hashes."""

from dataclasses import replace

import pytest
import torch

from aepo.files import StudyError
from aepo.learners import behavior as behavior_stage
from aepo.learners import critics, training
from aepo.learners.draws import Random
from aepo.learners.hindsight import Hindsight
from aepo.settings import CriticSettings

WALK = 40


def walk(data, dense=False):
    """Two straight walks of 40 steps, one unit in ten steps, as states (x, y, goal x, goal y) of a recorded data set."""
    x = torch.arange(WALK + 1) / 10
    episode = torch.arange(2 * WALK) // WALK
    here, there = (torch.stack([torch.cat([part, part]), episode.float()], 1) for part in (x[:-1], x[1:]))
    goal = torch.full((2 * WALK, 2), 9.0)
    state, next_state = torch.cat([here, goal], 1), torch.cat([there, goal], 1)
    return replace(
        data,
        state=state,
        next_state=next_state,
        action=torch.zeros(2 * WALK, 2),
        reward=torch.exp(-(there[:, :2] - goal).norm(dim=-1)) if dense else torch.zeros(2 * WALK),
        terminated=torch.zeros(2 * WALK),
        truncated=torch.zeros(2 * WALK),
        episode=episode,
        state_mean=state.mean(0),
        state_std=torch.ones(4),
        action_low=-torch.ones(2),
        action_high=torch.ones(2),
    )


@pytest.mark.parametrize("dense", [False, True])
def test_goals_lie_ahead_and_rewards_are_the_environments(data, dense):
    data = walk(data, dense)
    hindsight = Hindsight(data, 0.9, 0.45, 2.0)
    index = torch.arange(2 * WALK).repeat(2, 50)
    uniform = torch.rand(index.shape, generator=torch.Generator().manual_seed(0))
    state, next_state = (data.standardize(x)[index] for x in (data.state, data.next_state))
    new_state, new_next, reward, floor = hindsight.relabel(index, uniform, state, next_state)
    assert torch.equal(new_state[..., :2], state[..., :2])
    assert torch.equal(new_state[..., 2:], new_next[..., 2:])
    goal = new_state[..., 2:] + data.state_mean[2:]
    assert torch.equal(goal[..., 1].round().long(), data.episode[index])  # of the same episode
    ahead = ((goal[..., 0] - data.next_state[index][..., 0]) * 10).round()
    assert ahead.min() == 0
    inner = index % WALK == 0  # steps are geometric with mean 1/(1 - discount) - 1, cut at the episode's end
    assert abs(ahead[inner].mean() - sum(0.9**k for k in range(1, WALK))) < 2
    expected = torch.exp(-ahead / 10) if dense else (ahead <= 4).float()
    torch.testing.assert_close(reward, 2 * expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(floor, 2 * 0.9**ahead, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dense", [False, True])
def test_data_whose_rewards_are_not_those_of_a_goal_are_refused(data, dense):
    data = walk(data, dense)
    with pytest.raises(StudyError, match="the least is -1: set hindsight"):  # a maze that pays -1 a step
        Hindsight(replace(data, reward=torch.full((2 * WALK,), -1.0)), 0.9, 0.45, 2.0)
    other = replace(data, reward=torch.full((2 * WALK,), 0.25) if dense else (torch.arange(2 * WALK) % 7 == 0).float())
    with pytest.raises(
        StudyError, match=r"begin with a position .* holds of 0% of the rewards above 0, the least is .*: set hindsight"
    ):
        Hindsight(other, 0.9, 0.45, 2.0)


def test_the_given_share_of_a_batch_has_them(data):
    data = walk(data)
    some = replace(CriticSettings(), hindsight=0.25, reward_scale=1.0, discount=0.98)
    transitions = critics.Transitions(data, some)
    random = Random((0,), like=data.state)
    draws = {"index": random.index(len(data), 64)} | transitions.draw_goals(random, 64)
    batch = transitions.batch({key: value[0] for key, value in draws.items()})
    state, _, _, reward, _, floor = batch
    assert (state[:, :48, 2:] == 0).all()
    assert (state[:, 48:, 2:] != 0).any(-1).all()
    assert (reward[:, :48] == 0).all()
    assert (reward[:, 48:] == 1).any()
    assert (floor[:, 48:] > 0).all()
    plain = critics.Transitions(data, replace(some, hindsight=0.0))
    index = {"index": draws["index"][0]}
    torch.testing.assert_close(plain.batch(index)[0][:, :48], state[:, :48])


@pytest.mark.parametrize("kind", ["expectile", "softmax"])
def test_a_critic_reaches_goals_that_no_recorded_reward_names(data, tiny, kind):
    """A walk that never came to its goals: without hindsight Q is 0 everywhere, with it nearer goals are worth more."""
    data = walk(data)
    chosen = replace(
        CriticSettings(), width=32, depth=1, steps=300, hindsight=0.5, reward_scale=1.0, discount=0.9, support=2
    )
    behavior = behavior_stage.behavior_learner(data, (0,), tiny.behavior)[1]
    state = torch.tensor([[[1.0, 0.0, 1.2, 0.0], [1.0, 0.0, 3.8, 0.0]]]) - data.state_mean
    found = []
    for settings_ in (chosen, replace(chosen, hindsight=0.0)):
        if kind == "expectile":
            learner, critic = critics.critic_learner(data, (0,), settings_)
        else:
            learner, critic = critics.critic_learner(data, (0,), settings_, behavior)
        training.fit(learner, settings_.steps, 3e-3, 100)
        found.append(critic.q_target.minimum(state, torch.zeros(1, 2, 2))[0])
    (near, far), without = found
    assert near > far + 0.3
    assert without.abs().max() < 0.1


def test_a_share_that_is_none_is_refused(data):
    for share in (-0.5, 1.5):
        with pytest.raises(StudyError, match=f"hindsight is a share of a batch: give 0 to 1, not {share}"):
            critics.Transitions(walk(data), replace(CriticSettings(), hindsight=share, discount=0.98))
