"""Every task of the table: unique names and ids, settings that exist, environments with the spaces it states."""

import functools

import pytest

from aepo import environments, files, settings
from aepo.data import tasks
from aepo.study import evaluation, runs

TASKS = list(tasks.TASKS.values())


def environment_key(task):
    return repr((task.env_id, task.env_kwargs, task.horizon))


@functools.cache
def made(key):
    """One environment for all tasks that share it."""
    return environments.make(next(task for task in TASKS if environment_key(task) == key))


def test_the_table_is_large_and_consistent():
    assert len(tasks.SUITES) == 8
    assert len(TASKS) >= 80
    assert {task.suite for task in TASKS} == set(tasks.SUITES)
    assert [task for name in tasks.SUITES for task in tasks.suite(name)] == TASKS
    ids = [dataset_id for task in TASKS for dataset_id in set(task.dataset_ids.values())]
    assert len(set(ids)) == len(ids)
    for task in TASKS:
        assert set(task.dataset_ids) == set(settings.PROFILES)
        official = task.source == tasks.MINARI
        assert all(i.startswith("aepo/") != official for i in task.dataset_ids.values()), "we take no official id"
        assert task.env_id or "train-only" in task.note
        assert (task.recipe is not None) == (task.source == tasks.LOCAL)
        settings.for_task("quick", task.settings)


def test_local_small_is_six_tasks_of_three_families():
    small = tasks.suite("local-small")
    assert len(small) == 6
    assert {task.recipe for task in small} == {"waypoint", "pointmaze", "actors"}
    with pytest.raises(ValueError, match="unknown suite 'big': choose one of pointmaze"):
        tasks.suite("big")


@pytest.mark.parametrize("suite", tasks.SUITES)
def test_environments_are_what_the_table_says(suite):
    for task in tasks.suite(suite):
        if task.env_id is None:
            with pytest.raises(files.StudyError, match="train-only"):
                environments.make(task)
            continue
        env = made(environment_key(task))
        assert env.spec.max_episode_steps == task.horizon
        assert env.observation_space.shape == (task.dimensions[0],)
        assert env.action_space.shape == (task.dimensions[1],)
        observation, _ = env.reset(seed=0)
        assert observation.shape == (task.dimensions[0],)


def test_the_parts_of_a_goal_observation_come_in_the_stated_order():
    task = tasks.get("antmaze-umaze-v1")
    env = environments.make(task, flat=False)
    observation, _ = env.reset(seed=0)
    flat = environments.flatten(observation, task.observation_keys)
    assert flat[:2].tolist() == observation["achieved_goal"].tolist()
    assert flat[2:29].tolist() == observation["observation"].tolist()
    assert flat[29:].tolist() == observation["desired_goal"].tolist()
    point = environments.make(tasks.get("pointmaze-umaze-v2"), flat=False)
    observation, _ = point.reset(seed=0)
    assert observation["achieved_goal"].tolist() == observation["observation"][:2].tolist(), "left out as redundant"


def test_the_goal_of_an_evaluation_is_one_cell():
    env = made(environment_key(tasks.get("pointmaze-large-v2")))
    goals = [env.reset(seed=seed)[0][4:] for seed in range(5)]
    assert max(abs(goals[0] - goal).max() for goal in goals) <= 0.5  # the cell's noise
    cells = {tuple(env.unwrapped.maze.cell_xy_to_rowcol(goal)) for goal in goals}
    assert cells == {(7, 9)}


def test_legacy_ant_observes_zeros_in_place_of_contact_forces():
    env = environments.make(tasks.get("d4rl-ant-medium-v2"))
    env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(env.action_space.sample())
    assert observation.shape == (111,)
    assert observation[:27].all()
    assert not observation[27:].any()


def test_kitchen_observations_are_their_own_and_success_is_all_subtasks():
    env = environments.make(tasks.get("kitchen-complete-v2"), flat=False)
    first, info = env.reset(seed=0)
    before = {key: value.copy() for key, value in first["achieved_goal"].items()}
    for _ in range(5):
        _, _, _, _, info = env.step(env.action_space.sample())
    assert all((before[key] == first["achieved_goal"][key]).all() for key in before)
    assert info == {"success": False, "completed": 0}


@pytest.mark.parametrize("size", ["UMaze", "Medium", "Large"])
def test_maze2d_dense_is_the_distance_to_the_same_goal(size):
    import gymnasium as gym
    import numpy as np

    sparse, dense = gym.make(f"aepo/Maze2D-{size}-v0"), gym.make(f"aepo/Maze2D-{size}Dense-v0")
    assert sparse.unwrapped.goal.tolist() == dense.unwrapped.goal.tolist()
    for env in (sparse, dense):
        env.reset(seed=3)
    action = np.array([0.3, -0.4], dtype=np.float32)
    for _ in range(20):
        state, reward, *_ = sparse.step(action)
        again, value, *_ = dense.step(action)
        assert state.tolist() == again.tolist()
        distance = np.linalg.norm(state[:2] - sparse.unwrapped.goal)
        assert value == pytest.approx(np.exp(-distance))
        assert reward == (distance <= environments.GOAL_RADIUS)


def test_a_policy_takes_dicts_in_the_order_it_was_trained_with(tmp_path):
    """One dict, a batch of them and the flat array give the same actions; the order comes from the manifest."""
    import numpy as np
    import torch

    from aepo import Policy
    from aepo.core import models
    from aepo.settings import BehaviorSettings

    task = tasks.get("pointmaze-umaze-v2")
    run = runs.open_run(task.name, [0], ["bc"], "smoke", "cpu", tmp_path / "runs")
    settings = BehaviorSettings(width=16, depth=2)
    behavior = models.Behavior(1, 6, 2, settings.width, settings.depth, settings.variance_times)
    behavior.state_std.fill_(1.0)
    behavior.low.fill_(-1.0), behavior.high.fill_(1.0)
    files.write_artifact(
        run.artifact("behavior"), behavior.state_dict(), {"settings": vars(settings), "seeds": [0], "settings_hash": ""}
    )
    rollouts = evaluation.evaluate(run, "bc")
    assert rollouts.states.shape[-1] == 6
    assert set(np.unique(rollouts.success)) <= {0.0, 1.0}
    policy = Policy.load(run.folder, "bc", device="cpu")
    assert policy.observation_keys == ("observation", "desired_goal")
    flat = evaluation.Copies(task, 3).reset([1, 2, 3])
    parts = {"achieved_goal": flat[:, :2], "desired_goal": flat[:, 4:], "observation": flat[:, :4]}
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    assert np.array_equal(policy.act(parts, seeded()), policy.act(flat, seeded()))
    one = {key: value[0] for key, value in parts.items()}
    assert np.array_equal(policy.act(one, seeded()), policy.act(flat[0], seeded()))
    with pytest.raises(ValueError, match="it lacks desired_goal"):
        policy.act({"observation": flat[0, :4]})
    with pytest.raises(ValueError, match="an array is needed"):
        Policy(policy.actor).act(one)
