"""A task's environments, with flat observations; and Maze2D, D4RL's fixed-goal protocol on PointMaze."""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from gymnasium.wrappers import TransformObservation

from aepo.files import StudyError

if TYPE_CHECKING:
    from aepo.data.tasks import Task

gym.register_envs(gymnasium_robotics)

GOAL_RADIUS = 0.45
# Steps of an episode and goal cell (row, column): D4RL's Maze2D and the official evaluation of PointMaze have the same.
MAZES = {"open": (300, (2, 3)), "umaze": (300, (1, 1)), "medium": (600, (6, 6)), "large": (800, (7, 9))}


class Maze2D(gym.Env):
    """A point mass in a PointMaze with one fixed goal, the same in every episode.

    Reward: 1 in each step that ends within 0.45 of the goal; exp(-distance) where `dense`. Observation (x, y, vx, vy)
    without the goal, action: force in [-1, 1]^2. Never terminates. `reset` starts in a random free cell away from the
    goal, or in `options={"reset_cell": (row, column)}`. `info["success"]`: at the goal.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, maze: str, goal_cell: tuple[int, int], dense: bool = False, render_mode: str | None = None):
        self._point = gym.make(maze, render_mode=render_mode, disable_env_checker=True).unwrapped
        remove_model_file(self._point)
        self.maze = self._point.maze
        self.goal_cell = np.array(goal_cell)
        self.goal = np.asarray(self.maze.cell_rowcol_to_xy(self.goal_cell), dtype=np.float64)
        self.dense = dense
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
        return state, {"success": self._distance(state) <= GOAL_RADIUS}

    def step(self, action: np.ndarray):
        state = self._point.step(action)[0]["observation"]
        distance = self._distance(state)
        success = distance <= GOAL_RADIUS
        return state, float(np.exp(-distance) if self.dense else success), False, False, {"success": success}

    def _distance(self, state: np.ndarray) -> float:
        return float(np.hypot(*(state[:2] - self.goal)))

    def render(self):
        return self._point.render()

    def close(self) -> None:
        self._point.close()


for _size, _title in (("umaze", "UMaze"), ("medium", "Medium"), ("large", "Large")):
    _steps, _goal = MAZES[_size]
    for _kind, _arguments in (("", {}), ("Dense", {"dense": True})):
        gym.register(
            f"aepo/Maze2D-{_title}{_kind}-v0",
            entry_point="aepo.environments:Maze2D",
            kwargs={"maze": f"PointMaze_{_title}-v3", "goal_cell": _goal, **_arguments},
            max_episode_steps=_steps,
        )


class KitchenSuccess(gym.Wrapper):
    """`info["success"]`: all subtasks of the episode were completed; in place of lists that cannot be batched."""

    def reset(self, **options: Any):
        observation, _ = self.env.reset(**options)
        return observation, {"success": False, "completed": 0}

    def step(self, action: np.ndarray):
        observation, reward, terminated, truncated, info = self.env.step(action)
        completed = len(info["episode_task_completions"])
        info = {"success": completed == len(self.unwrapped.goal), "completed": completed}
        return observation, reward, terminated, truncated, info


def _flat(env: gym.Env, keys: tuple[str, ...]) -> gym.Env:
    """A dict observation as one array: its parts `keys`, in that order."""
    parts = [env.observation_space[key] for key in keys]
    low, high = (np.concatenate([np.ravel(getattr(p, end)) for p in parts]) for end in ("low", "high"))
    space = gym.spaces.Box(low, high, dtype=parts[0].dtype)
    return TransformObservation(env, lambda observation: flatten(observation, keys), space)


def _with_zeros(env: gym.Env, count: int) -> gym.Env:
    """Observations with `count` zeros at the end: what legacy data have and today's environment has not."""
    zeros, space = np.zeros(count), env.observation_space
    low, high = (np.concatenate([end, zeros]) for end in (space.low, space.high))
    space = gym.spaces.Box(low, high, dtype=space.dtype)
    return TransformObservation(env, lambda observation: np.concatenate([observation, zeros]), space)


def remove_model_file(env: gym.Env) -> None:
    """Gymnasium-Robotics' mazes leave their MuJoCo model in the temporary folder."""
    path = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def make(task: Task, flat: bool = True) -> gym.Env:
    """The environment that evaluates a task: its arguments, episodes of `task.horizon` steps, flat observations.

    `flat=False` leaves dict observations as they are. StudyError where the task is train-only, or where the
    environment cannot be made or does not have the task's spaces.
    """
    if task.env_id is None:
        raise StudyError(
            f"task {task.name} is train-only ({task.note or 'it names no environment'}): it has no rollouts"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is out of date.*")
            env = gym.make(
                task.env_id, max_episode_steps=task.horizon, disable_env_checker=True, **dict(task.env_kwargs)
            )
    except (gym.error.Error, TypeError, ValueError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise StudyError(
            f"the environment {task.env_id} of task {task.name} cannot be made ({reason}): check env_id and env_kwargs"
        ) from None
    remove_model_file(env)
    if task.env_id.startswith("FrankaKitchen"):
        # FrankaKitchen hands out arrays that share memory with the simulation.
        env = KitchenSuccess(TransformObservation(env, copy.deepcopy, env.observation_space))
    if task.zeros:
        env = _with_zeros(env, task.zeros)
    try:
        _check_spaces(task, env)
    except StudyError:
        env.close()
        raise
    return _flat(env, task.observation_keys) if flat and task.observation_keys else env


def _check_spaces(task: Task, env: gym.Env) -> None:
    space, where = env.observation_space, f"the environment {task.env_id} of task {task.name}"
    if isinstance(space, gym.spaces.Dict):
        if not task.observation_keys:
            raise StudyError(f"{where} has dict observations ({', '.join(space)}): name the parts in observation_keys")
        missing = [key for key in task.observation_keys if key not in space.spaces]
        if missing:
            raise StudyError(f"{where} has no observation {', '.join(missing)}: it has {', '.join(space)}")
        parts = [space[key] for key in task.observation_keys]
    elif task.observation_keys:
        raise StudyError(f"{where} has plain observations: leave observation_keys empty")
    else:
        parts = [space]
    for part in parts:
        if not isinstance(part, gym.spaces.Box) or len(part.shape) != 1:
            raise StudyError(f"{where} has observations {part}: only vectors of numbers can be learned from")
    if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
        raise StudyError(f"{where} has the action space {env.action_space}: only boxes of numbers can be acted in")
    found = (sum(part.shape[0] for part in parts), env.action_space.shape[0])
    if task.dimensions and found != tuple(task.dimensions):
        raise StudyError(f"{where} has {found[0]} observations and {found[1]} actions, the task {task.dimensions}")


def flatten(observation: Any, keys: Sequence[str]) -> np.ndarray:
    """The parts `keys` of a dict observation joined along the last axis in that order; one observation, or a batch.

    Arrays pass as they are. ValueError names the parts that are missing, says that there should be none, or that shapes
    do not fit together.
    """
    if not isinstance(observation, Mapping):
        return _array(observation, "the observation")
    missing = [key for key in keys if key not in observation]
    if missing or not keys:
        raise ValueError(
            f"the observation is a dict of {', '.join(map(str, observation))}: "
            + (f"it lacks {', '.join(missing)}" if missing else "an array is needed here")
        )
    parts = {key: _array(observation[key], f"the observation's part {key}") for key in keys}
    shapes = {key: part.shape for key, part in parts.items()}
    if len({shape[:-1] for shape in shapes.values()}) > 1 or () in shapes.values():
        shown = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise ValueError(f"the parts of the observation do not fit together: {shown}")
    return np.concatenate(list(parts.values()), axis=-1)


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} is a list of unequal lengths: an array is needed") from None
