"""The way-point controller of the point mazes: walks between random goals, as D4RL's Maze2D and Minari's PointMaze do."""

from typing import Any, cast

import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo.data.tasks import Task
from aepo.environments import without_file
from aepo.progress import Progress

POSITION_GAIN, VELOCITY_GAIN = 10.0, -1.0
ACTION_NOISE = 0.5
WAYPOINT_RADIUS, REACHED_RADIUS = 0.3, 0.1
GOAL_NOISE = 0.25
POINTMAZE_RADIUS, POINTMAZE_JITTER, PATIENCE = 0.1, 0.2, 200
POINTMAZE_WALK = {"continuing_task": True, "reset_target": True}
REFERENCE_EPISODES = 100


def value_iteration(free: np.ndarray, goal: tuple[int, int], discount: float = 0.95) -> np.ndarray:
    """Optimal value of each free cell `(rows, columns)`: reward 1 at `goal`, moves to 4 neighbors; walls get -inf."""
    value = np.where(free, 0.0, -np.inf)
    for _ in range(free.size):
        padded = np.pad(value, 1, constant_values=-np.inf)
        best = np.max([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:], value], axis=0)
        value = np.where(free, discount * best, -np.inf)
        value[goal] = 1.0
    return value


class WaypointController:
    """Drives a point mass through the cells that value iteration prefers, with a PD law toward the next way-point.

    A way-point counts as reached within `radius`. With `jitter`, a generator, they are moved by U(-0.2, 0) of it.
    """

    def __init__(self, maze, radius: float = WAYPOINT_RADIUS, jitter: np.random.Generator | None = None):
        self.maze, self.radius, self.jitter, self.waypoints = maze, radius, jitter, list[np.ndarray]()
        free = np.array([[cell != 1 for cell in row] for row in maze.maze_map])
        self._values = {(i, j): value_iteration(free, (i, j)) for i, j in np.argwhere(free).tolist()}

    def cell(self, position: np.ndarray) -> tuple[int, int]:
        """(row, column) of the cell around xy."""
        return cast(tuple[int, int], tuple(int(i) for i in self.maze.cell_xy_to_rowcol(position)))

    def center(self, cell: tuple[int, int]) -> np.ndarray:
        """xy of a cell's center."""
        return np.asarray(self.maze.cell_rowcol_to_xy(np.array(cell)), dtype=np.float64)

    def random_goal(self, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """xy in a cell other than that around `position`, off its center by up to 0.25."""
        cells = [cell for cell in self._values if cell != self.cell(position)]
        return self.center(cells[rng.integers(len(cells))]) + rng.uniform(-GOAL_NOISE, GOAL_NOISE, 2)

    def set_goal(self, position: np.ndarray, goal: np.ndarray) -> None:
        """Plan from `position` to `goal` (both xy): the centers of the cells between, then the goal itself."""
        cell, goal_cell, self.waypoints = self.cell(position), self.cell(goal), []
        value = self._values[goal_cell]
        while cell != goal_cell:
            row, column = cell
            neighbors = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
            cell = max(neighbors, key=lambda c: value[c])
            if cell != goal_cell:
                moved = POINTMAZE_JITTER * self.jitter.uniform(size=2) if self.jitter and self.waypoints else 0.0
                self.waypoints.append(self.center(cell) - moved)
        self.waypoints.append(np.array(goal, dtype=np.float64))

    def act(self, state: np.ndarray) -> np.ndarray:
        """PD action 10 (target - x) - v, clipped to the box; state (x, y, vx, vy)."""
        position, velocity = state[:2], state[2:]
        while len(self.waypoints) > 1 and np.hypot(*(self.waypoints[0] - position)) < self.radius:
            self.waypoints.pop(0)
        return np.clip(POSITION_GAIN * (self.waypoints[0] - position) + VELOCITY_GAIN * velocity, -1.0, 1.0)


def recorded_episode(seed: int, observations: Any, actions: list, rewards: list, terminated=False, truncated=True):
    """The EpisodeBuffer of T steps with their T + 1 observations (an array, a list of rows, or a dict of arrays)."""
    last = np.arange(len(actions)) == len(actions) - 1
    return EpisodeBuffer(
        seed=seed,
        observations=observations if isinstance(observations, dict) else np.array(observations),
        actions=np.array(actions, dtype=np.float32),
        rewards=np.array(rewards, dtype=np.float64),
        terminations=last & terminated,
        truncations=last & truncated,
    )


def collect_walk(task: Task, steps: int, seed: int) -> list[EpisodeBuffer]:
    """One long walk between goals, cut into segments where the goal changes (truncated); the ball is never reset.

    Recipe "waypoint", as D4RL's Maze2D: a new goal when the ball is within 0.1 of it, or after `task.horizon` steps.
    Recipe "pointmaze", as Minari's: the environment's own goals all over the maze, redrawn at each success; every
    observation of a segment carries the goal of that segment, the last one too.
    """
    own_goals = task.recipe == "pointmaze"
    env: Any = without_file(task.env_id or "", **(POINTMAZE_WALK if own_goals else task.env_kwargs)).unwrapped
    rng = np.random.default_rng([seed, 0])
    controller = WaypointController(env.maze, *((POINTMAZE_RADIUS, rng) if own_goals else ()))
    longest, patience = (steps, PATIENCE) if own_goals else (task.horizon, task.horizon)
    state = _ball(env.reset(seed=seed)[0])
    segments: list[EpisodeBuffer] = []
    done = 0
    with Progress("collect", steps) as bar:
        while done < steps:
            goal = env.goal.copy() if own_goals else controller.random_goal(state[:2], rng)
            states, actions, rewards, reached = [state], list[np.ndarray](), list[float](), False
            while not reached and len(actions) < min(longest, steps - done):
                if len(actions) % patience == 0:
                    controller.set_goal(state[:2], goal)
                noisy = controller.act(state) + ACTION_NOISE * rng.standard_normal(2)
                actions.append(np.clip(noisy, -1.0, 1.0).astype(np.float32))
                observation, reward, _, _, info = env.step(actions[-1])
                state = _ball(observation)
                states.append(state)
                rewards.append(reward)
                reached = info["success"] if own_goals else np.hypot(*(goal - state[:2])) < REACHED_RADIUS
            done += len(actions)
            bar.update(len(actions))
            observations: Any = np.array(states)
            if own_goals:
                goals, positions = np.tile(goal, (len(states), 1)), observations[:, :2].copy()
                observations = {"achieved_goal": positions, "desired_goal": goals, "observation": observations}
            segments.append(recorded_episode(seed, observations, actions, rewards))
    env.close()
    return segments


def _ball(observation: Any) -> np.ndarray:
    """(x, y, vx, vy) of the ball, without the goals that PointMaze observes beside it."""
    return observation["observation"] if isinstance(observation, dict) else observation


def maze_references(task: Task, seed: int) -> tuple[float, float, str]:
    """Mean returns of the random policy and of the noiseless controller sent to whatever goal the environment has."""
    env: Any = without_file(task.env_id or "", **task.env_kwargs)
    controller, returns = WaypointController(env.unwrapped.maze), np.zeros((2, REFERENCE_EPISODES))
    for drives, episode in np.ndindex(returns.shape):
        if not episode:
            env.action_space.seed(seed)
        observation, _ = env.reset(seed=seed + episode)
        goal, truncated = np.empty(0), False
        while not truncated:
            state = _ball(observation)
            if not np.array_equal(goal, env.unwrapped.goal):
                goal = env.unwrapped.goal.copy()
                controller.set_goal(state[:2], goal)
            action = controller.act(state) if drives else env.action_space.sample()
            observation, reward, _, truncated, _ = env.step(action)
            returns[drives, episode] += reward
    env.close()
    measured = f"both measured here over {REFERENCE_EPISODES} episodes"
    return *returns.mean(1).tolist(), f"0: random policy, 100: noiseless way-point controller, {measured}"
