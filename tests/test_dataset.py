"""The Maze2D data: a genuine Minari dataset with the protocol's properties."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch

from aepo import environments, files, settings
from aepo.data import collect, datasets, tasks, waypoint
from aepo.study import results

TASK = tasks.get("maze2d-umaze")


def test_minari_round_trip(data):
    stored = minari.load_dataset(data.dataset_id)
    assert stored.total_steps == len(data) == settings.SMOKE.data.steps
    episode = stored[3]
    rows = data.episode == 3
    assert np.allclose(episode.observations[:-1], data.state[rows])
    assert np.allclose(episode.observations[1:], data.next_state[rows])
    assert np.allclose(episode.actions, data.action[rows], atol=1e-6)
    assert np.allclose(episode.rewards, data.reward[rows])
    env = stored.recover_environment(eval_env=True)
    assert env.spec.id == "aepo/Maze2D-UMaze-v0"
    assert env.spec.max_episode_steps == 300
    assert stored.observation_space == env.observation_space
    assert stored.action_space == env.action_space


def test_minari_shows_it(data):
    shown = subprocess.run(
        [Path(sys.executable).parent / "minari", "show", data.dataset_id], capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert "aepo/Maze2D-UMaze-v0" in shown.stdout


def test_no_transition_mixes_two_segments(data):
    same = data.episode[1:] == data.episode[:-1]
    assert torch.equal(data.next_state[:-1][same], data.state[1:][same])
    assert torch.equal(data.truncated[:-1].bool(), ~same)
    assert data.truncated[-1] == 1
    assert data.terminated.sum() == 0


def test_the_walk_goes_on_across_segments(data):
    """The ball is never reset: a segment starts where the one before ended."""
    assert torch.equal(data.next_state[:-1], data.state[1:])


def test_collecting_again_gives_the_same_walk():
    first, second = (collect.collect_walk(TASK, 300, seed=4) for _ in range(2))
    assert all(np.array_equal(a.observations, b.observations) for a, b in zip(first, second, strict=True))
    other = collect.collect_walk(TASK, 300, seed=5)
    assert not np.array_equal(first[0].observations[:20], other[0].observations[:20])


def test_reward_is_one_within_the_radius_of_cell_1_1():
    env = gym.make(TASK.env_id)
    state, info = env.reset(seed=0, options={"reset_cell": np.array([1, 1])})
    assert np.allclose(env.unwrapped.goal, env.unwrapped.maze.cell_rowcol_to_xy(np.array([1, 1])))
    seen = set()
    for _ in range(300):
        state, reward, terminated, truncated, info = env.step(env.action_space.sample())
        near = np.linalg.norm(state[:2] - env.unwrapped.goal) <= environments.GOAL_RADIUS
        assert reward == float(near) == float(info["success"])
        assert not terminated
        seen.add(near)
    assert truncated
    assert True in seen


def test_starts_are_away_from_the_goal_and_follow_the_seed():
    env = gym.make(TASK.env_id)
    starts = [env.reset(seed=i)[0] for i in range(20)]
    assert all(np.linalg.norm(s[:2] - env.unwrapped.goal) > environments.GOAL_RADIUS for s in starts)
    assert np.array_equal(env.reset(seed=7)[0], starts[7])
    assert len({tuple(s) for s in starts}) == 20


def test_controller_beats_random(data):
    random_return, controller = data.reference_scores
    assert 0 <= random_return < 40
    assert controller > 200


def test_value_iteration_counts_cells():
    free = np.array([[1, 1, 1], [0, 0, 1], [1, 1, 1]], dtype=bool)
    value = waypoint.value_iteration(free, (2, 0), discount=0.5)
    assert value[2].tolist() == [1, 0.5, 0.25]
    assert value[0].tolist() == [2**-6, 2**-5, 2**-4]
    assert value[1, 0] == -np.inf


def test_preparing_again_does_nothing(data):
    path = Path(os.environ["MINARI_DATASETS_PATH"]) / data.dataset_id / "data" / "main_data.hdf5"
    stamp = path.stat().st_mtime_ns
    assert datasets.prepare(TASK, "smoke", settings.SMOKE.data) == data.dataset_id
    assert path.stat().st_mtime_ns == stamp


def test_a_broken_off_collection_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(
        minari,
        "create_dataset_from_buffers",
        lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(files.StudyError, match=r"cannot write the dataset aepo/maze2d/umaze-smoke-v0 .*No space left"):
        datasets.prepare(TASK, "smoke", settings.DataSettings(steps=50))
    assert [p.name for p in tmp_path.iterdir()] == [".locks"]


def test_a_missing_dataset_says_which_notebook_makes_it():
    with pytest.raises(
        files.StudyError, match=r"dataset aepo/maze2d/nowhere-v0 .*run notebook 03_dataset first, or `aepo data collect"
    ):
        datasets.load(replace(TASK, dataset_ids={"smoke": "aepo/maze2d/nowhere-v0"}), "smoke")


def test_recorded_returns_are_windows_of_the_walk(data):
    windows = datasets.recorded_returns(data, 300, continuing=True)
    assert len(windows) == len(data) // 300
    assert windows[2] == data.reward[600:900].sum()
    first = datasets.recorded_returns(data, 40, continuing=False)
    assert first[3] == data.reward[data.episode == 3][:40].sum()
    assert first.sum() < data.reward.sum()
    episodes = datasets.recorded_returns(data, 300, continuing=False)
    assert episodes[3] == data.reward[data.episode == 3].sum()


def test_the_return_floor_is_what_followed_and_nothing_where_too_little_is_known(data):
    """Two episodes of two steps: one ends by termination, one is cut off; negative rewards need the end to be known."""
    few = {
        name: value[:4]
        for name, value in vars(data).items()
        if isinstance(value, torch.Tensor) and len(value) == len(data)
    }
    few["episode"] = torch.tensor([0, 0, 1, 1])
    few["terminated"] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    ended, cut = [-2.0, -2.0], [-torch.inf, -torch.inf]
    negative = replace(data, **few | {"reward": torch.tensor([-1.0, -2.0, -4.0, -8.0])})
    assert datasets.return_floor(negative, 0.5).tolist() == ended + cut
    positive = replace(negative, reward=-negative.reward)
    assert datasets.return_floor(positive, 0.5).tolist() == [2.0, 2.0, 8.0, 8.0]
    assert datasets.return_floor(negative, 0.01).tolist() == pytest.approx([-1.02, -2.0, -4.08, -8.0])
    goes_on = replace(positive, episode=torch.zeros(4, dtype=torch.int64))  # recorded beyond a termination
    assert datasets.collected_next(goes_on, 0.5).tolist() == [2.0, 2.0, 8.0, 8.0]


def test_recorded_episodes_stand_in_tables_over_the_evaluations_length(run, data):
    """Longer ones count up to there, in return and length."""
    short = replace(run, task=replace(run.task, horizon=50, continuing=False))
    rows = results.recorded_rows(short, data)
    first = [data.reward[data.episode == e][:50].sum().item() for e in range(int(data.episode[-1]) + 1)]
    assert rows["return"].tolist() == pytest.approx(first)
    assert rows["length"].max() == 50
