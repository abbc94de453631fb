"""Animations of rollouts: from what a run kept, and a sentence where nothing can be drawn."""

import importlib.util
from pathlib import Path

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest

from aepo import files, settings
from aepo.data import tasks
from aepo.study import evaluation, stages

_spec = importlib.util.spec_from_file_location("rollouts", Path(__file__).parents[1] / "scripts" / "rollouts.py")
rollouts = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rollouts)


def test_a_maze_is_drawn_from_the_states_that_a_run_kept(run, data, tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(settings.PROFILES, "smoke", tiny)
    monkeypatch.setattr(rollouts, "FRAMES", 6)
    stages.train_behavior(run, data), stages.train_critic(run, data)
    states = evaluation.evaluate(run, "bc").states
    way = rollouts.kept(run.folder, "bc")
    assert np.array_equal(way, states[: len(way), 0, 0])
    path = rollouts.animate(run.folder, ["bc"], tmp_path)
    frames = imageio.imread(path)
    assert 2 <= len(frames) <= 6
    assert (frames[0] != frames[-1]).any()
    with pytest.raises(files.StudyError, match="iql"):
        rollouts.animate(run.folder, ["iql"], tmp_path)


def test_the_recorded_way_is_that_of_median_return(data):
    task = tasks.get("maze2d-umaze")
    way = rollouts.recorded(data, task)
    assert len(way) == task.horizon


def test_a_robot_takes_the_pose_of_its_state():
    """Its observation is the state again; without OpenGL, skipped."""
    task = tasks.get("local-hopper-medium-expert")
    env = gym.make(task.env_id)
    states = [env.reset(seed=1)[0]]
    for _ in range(4):
        states.append(env.step(env.action_space.sample())[0])
    ways = {"recorded": np.float32(states), "bc": np.float32(states[:2])}
    try:
        frames = list(rollouts.posed_frames(task, ways, np.arange(5)))
    except Exception as error:
        pytest.skip(f"MuJoCo cannot draw here: {type(error).__name__}")
    assert frames[0].shape == (rollouts.SIDE, 2 * rollouts.SIDE, 3)
    assert (frames[4] != frames[0]).any()
