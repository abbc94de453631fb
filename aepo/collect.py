"""Behavior policies that make data where nothing can be downloaded: the way-point controller of D4RL's Maze2D."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo.environments import HORIZON
from aepo.progress import Progress

POSITION_GAIN, VELOCITY_GAIN = 10.0, -1.0
ACTION_NOISE = 0.5
WAYPOINT_RADIUS, REACHED_RADIUS = 0.3, 0.1
GOAL_NOISE = 0.25
REFERENCE_EPISODES = 100


def value_iteration(free: np.ndarray, goal: tuple[int, int], discount: float = 0.95) -> np.ndarray:
    """Optimal value of each free cell `(rows, columns)`: reward 1 at `goal`, moves to 4 neighbors; walls get -inf."""
    value = np.where(free, 0.0, -np.inf)
    for _ in range(free.size):
        padded = np.pad(value, 1, constant_values=-np.inf)
        best = np.max([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:], value], axis=0)
        updated = np.where(free, discount * best, -np.inf)
        updated[goal] = 1.0
        if np.array_equal(updated, value):
            break
        value = updated
    return value


class WaypointController:
    """Drives a point mass through the cells that value iteration prefers, with a PD law toward the next way-point."""

    def __init__(self, maze):
        self.maze = maze
        self.free = np.array([[cell != 1 for cell in row] for row in maze.maze_map])
        self.cells = [tuple(int(i) for i in cell) for cell in np.argwhere(self.free)]
        self._values = {goal: value_iteration(self.free, goal) for goal in self.cells}
        self.waypoints: list[np.ndarray] = []

    def set_goal(self, position: np.ndarray, goal: np.ndarray) -> None:
        """Plan from `position` to `goal` (both xy): the centres of the cells between, then the goal itself."""
        cell = tuple(int(i) for i in self.maze.cell_xy_to_rowcol(position))
        goal_cell = tuple(int(i) for i in self.maze.cell_xy_to_rowcol(goal))
        value = self._values[goal_cell]
        self.waypoints = []
        while cell != goal_cell:
            row, column = cell
            neighbors = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
            cell = max(neighbors, key=lambda c: value[c])
            if cell != goal_cell:
                self.waypoints.append(np.asarray(self.maze.cell_rowcol_to_xy(np.array(cell)), dtype=np.float64))
        self.waypoints.append(np.array(goal, dtype=np.float64))

    def act(self, state: np.ndarray) -> np.ndarray:
        """PD action 10 (target - x) - v, clipped to the box; state (x, y, vx, vy)."""
        position, velocity = state[:2], state[2:]
        while len(self.waypoints) > 1 and np.hypot(*(self.waypoints[0] - position)) < WAYPOINT_RADIUS:
            self.waypoints.pop(0)
        action = POSITION_GAIN * (self.waypoints[0] - position) + VELOCITY_GAIN * velocity
        return np.clip(action, -1.0, 1.0)


def collect_maze2d(env_id: str, steps: int, seed: int, progress: bool = True) -> list[EpisodeBuffer]:
    """One long walk between random goals, cut into segments where the controller's goal changes (truncated).

    The ball is never reset: a segment starts where the last one ended. Goals are random cells other than the current
    one, plus U(-0.25, 0.25); a new goal comes when the ball is within 0.1 of it, or after 300 steps.
    """
    env = gym.make(env_id, disable_env_checker=True).unwrapped
    rng = np.random.default_rng([seed, 0])
    controller = WaypointController(env.maze)
    state, _ = env.reset(seed=seed)
    segments: list[EpisodeBuffer] = []
    bar = Progress("collect", steps) if progress else None
    done = 0
    while done < steps:
        here = tuple(int(i) for i in env.maze.cell_xy_to_rowcol(state[:2]))
        choices = [cell for cell in controller.cells if cell != here]
        cell = choices[rng.integers(len(choices))]
        goal = np.asarray(env.maze.cell_rowcol_to_xy(np.array(cell))) + rng.uniform(-GOAL_NOISE, GOAL_NOISE, 2)
        controller.set_goal(state[:2], goal)
        observations, actions, rewards = [state], [], []
        while True:
            noise = ACTION_NOISE * rng.standard_normal(2)
            action = np.clip(controller.act(state) + noise, -1.0, 1.0).astype(np.float32)
            state, reward, *_ = env.step(action)
            observations.append(state)
            actions.append(action)
            rewards.append(reward)
            reached = np.hypot(*(goal - state[:2])) < REACHED_RADIUS
            if reached or len(actions) == HORIZON or done + len(actions) == steps:
                break
        count = len(actions)
        done += count
        if bar:
            bar.update(count)
        segments.append(
            EpisodeBuffer(
                id=len(segments),
                seed=seed,
                observations=np.array(observations),
                actions=np.array(actions),
                rewards=np.array(rewards),
                terminations=np.zeros(count, dtype=bool),
                truncations=np.arange(count) == count - 1,
            )
        )
    if bar:
        bar.close()
    env.close()
    return segments


def reference_returns(env_id: str, seed: int, episodes: int = REFERENCE_EPISODES) -> tuple[float, float]:
    """Mean return of the random policy and of the noiseless way-point controller sent to the task's goal."""
    env = gym.make(env_id, disable_env_checker=True)
    maze = env.unwrapped
    controller = WaypointController(maze.maze)
    means = []
    for kind in ("random", "controller"):
        returns = np.zeros(episodes)
        env.action_space.seed(seed)
        for episode in range(episodes):
            state, _ = env.reset(seed=seed + episode)
            controller.set_goal(state[:2], maze.goal)
            truncated = False
            while not truncated:
                action = env.action_space.sample() if kind == "random" else controller.act(state)
                state, reward, _, truncated, _ = env.step(action)
                returns[episode] += reward
        means.append(float(returns.mean()))
    env.close()
    return means[0], means[1]


RECIPES = {"waypoint": (collect_maze2d, reference_returns)}
