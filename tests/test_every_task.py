"""Every task really runs: tiny data from its own environment, loading, two steps of each stage, one short episode."""

from dataclasses import replace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo import environments, settings
from aepo.data import datasets, importing, tasks
from aepo.study import evaluation, results, runs, stages, tables

EPISODES, STEPS = 3, 12
_recorded = {}


def join(observations):
    """A list of observations, dicts of parts too, as arrays over time."""
    if isinstance(observations[0], dict):
        return {key: join([o[key] for o in observations]) for key in observations[0]}
    return np.array(observations)


def recorded(task):
    """A few short episodes of random actions, with the spaces: recorded once for all tasks of an environment."""
    key = repr((task.env_id, task.env_kwargs))
    if task.env_id is None:
        return synthetic(task)
    if key not in _recorded:
        env = environments.make(replace(task, horizon=STEPS), flat=False)
        env.action_space.seed(0)
        episodes = []
        for episode in range(EPISODES):
            rows, actions, rewards = [env.reset(seed=episode)[0]], [], []
            terminated = truncated = False
            while not (terminated or truncated):
                actions.append(env.action_space.sample())
                observation, reward, terminated, truncated, _ = env.step(actions[-1])
                rows.append(observation)
                rewards.append(float(reward))
            episodes.append((join(rows), np.array(actions), np.array(rewards), terminated))
        _recorded[key] = episodes, env.observation_space, env.action_space
        env.close()
    return _recorded[key]


def synthetic(task):
    """Random numbers of a train-only task's dimensions, in place of an environment."""
    rng, (n, d) = np.random.default_rng(0), task.dimensions
    episodes = [
        (rng.normal(size=(STEPS + 1, n)), rng.uniform(-1, 1, (STEPS, d)), rng.integers(0, 2, STEPS) * 1.0, False)
        for _ in range(EPISODES)
    ]
    return episodes, gym.spaces.Box(-np.inf, np.inf, (n,)), gym.spaces.Box(-1.0, 1.0, (d,), np.float32)


def write_minari(task, dataset_id):
    episodes, observation_space, action_space = recorded(task)
    last = lambda count: np.arange(count) == count - 1  # noqa: E731
    minari.create_dataset_from_buffers(
        dataset_id,
        buffer=[
            EpisodeBuffer(
                id=i,
                observations=o,
                actions=a,
                rewards=r,
                terminations=last(len(r)) & terminated,
                truncations=last(len(r)) & (not terminated),
            )
            for i, (o, a, r, terminated) in enumerate(episodes)
        ],
        observation_space=observation_space,
        action_space=action_space,
        algorithm_name="random",
        author="test",
        description="test",
    )


def write_hdf5(task, path):
    """The layout of D4RL's files: rows in a line, flags at episode ends."""
    episodes, _, _ = recorded(task)
    last = lambda r, flag: (np.arange(len(r)) == len(r) - 1) & flag  # noqa: E731
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([o[:-1] for o, *_ in episodes]).astype(np.float32)
        file["next_observations"] = np.concatenate([o[1:] for o, *_ in episodes]).astype(np.float32)
        file["actions"] = np.concatenate([a for _, a, *_ in episodes]).astype(np.float32)
        file["rewards"] = np.concatenate([r for _, _, r, _ in episodes]).astype(np.float32)
        file["terminals"] = np.concatenate([last(r, end) for _, _, r, end in episodes])
        file["timeouts"] = np.concatenate([last(r, not end) for _, _, r, end in episodes])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A temporary Minari folder of this test alone."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    return tmp_path


SMALL = {"width": 8, "steps": 2, "batch": 8}
TINY = {
    "behavior": {**SMALL, "variance_times": 3, "variance_samples": 8},
    "energy": {**SMALL, "depth": 2, "target_batches": 1},
}


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_runs(name, folder):
    task = replace(tasks.get(name), horizon=4)
    if task.source == tasks.D4RL:
        write_hdf5(task, folder / "data.hdf5")
        assert importing.import_hdf5(folder / "data.hdf5", task, task.dataset_ids["smoke"])
    else:
        write_minari(task, task.dataset_ids["smoke"])
    assert datasets.prepare(task, "smoke", settings.SMOKE.data) == task.dataset_ids["smoke"]
    data = datasets.load(task, "smoke")
    steps = sum(len(r) for _, _, r, _ in recorded(task)[0])
    assert data.state.shape == (steps, task.dimensions[0])
    assert data.action.shape == (steps, task.dimensions[1])
    assert data.action.abs().max() <= 1

    run = replace(runs.open_run(name, [0], ["aepo"], "smoke", "cpu", folder / "runs"), task=task)
    small = TINY | {"critic": {**task.settings.get("critic", {}), **SMALL, "discount": 0.98}}
    short = replace(run, task=replace(task, settings=small))
    behavior, critic = stages.train_behavior(short, data), stages.train_critic(short, data)
    stages.train_energy(short, data, behavior, critic, "aepo")

    rollouts = evaluation.evaluate(run, "aepo")
    returns = results.write_returns(run, data)
    table = tables.readable_task_table(tables.task_table(returns))
    assert table["return"].str.contains(r"\d").all()
    if task.env_id is None:
        assert rollouts is None
        assert set(table["score"]) == {"-"}
        return
    assert (rollouts.length <= 4).all()
    assert np.isfinite(rollouts.returns).all()
    assert (set(table["score"]) == {"-"}) == (data.reference_scores is None)
    goal = (
        task.suite in ("pointmaze", "antmaze", "adroit", "kitchen", "maze2d")
        or "maze" in name
        or "Adroit" in task.env_id
    )
    assert np.isnan(rollouts.success).all() != goal
