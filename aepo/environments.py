"""Environments that the study adds: Maze2D, D4RL's fixed-goal protocol on Gymnasium-Robotics' PointMaze."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np

gym.register_envs(gymnasium_robotics)

GOAL_RADIUS = 0.45
HORIZON = 300


class Maze2D(gym.Env):
    """A point mass in a PointMaze that collects reward 1 in each step that ends within 0.45 of one fixed goal.

    Observation (x, y, vx, vy) without the goal, action: force in [-1, 1]^2. Never terminates. `reset` starts in a
    random free cell away from the goal, or in `options={"reset_cell": (row, column)}`. `info["success"]`: at the goal.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, maze: str, goal_cell: tuple[int, int], render_mode: str | None = None):
        self._point = gym.make(maze, render_mode=render_mode, disable_env_checker=True).unwrapped
        os.unlink(self._point.tmp_xml_file_path)
        self.maze = self._point.maze
        self.goal_cell = np.array(goal_cell)
        self.goal = np.asarray(self.maze.cell_rowcol_to_xy(self.goal_cell), dtype=np.float64)
        self.observation_space = self._point.observation_space["observation"]
        self.action_space = self._point.action_space
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        cells = {"goal_cell": self.goal_cell} | (options or {})
        observation, _ = self._point.reset(seed=seed, options=cells)
        self._point.goal = self.goal.copy()
        self._point.update_target_site_pos()
        state = observation["observation"]
        return state, {"success": self._at_goal(state)}

    def step(self, action: np.ndarray):
        state = self._point.step(action)[0]["observation"]
        success = self._at_goal(state)
        return state, float(success), False, False, {"success": success}

    def _at_goal(self, state: np.ndarray) -> bool:
        return bool(np.hypot(*(state[:2] - self.goal)) <= GOAL_RADIUS)

    def render(self):
        return self._point.render()

    def close(self) -> None:
        self._point.close()


gym.register(
    "aepo/Maze2D-UMaze-v0",
    entry_point="aepo.environments:Maze2D",
    kwargs={"maze": "PointMaze_UMaze-v3", "goal_cell": (1, 1)},
    max_episode_steps=HORIZON,
)
