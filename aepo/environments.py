"""A task's environments, with flat observations; and Maze2D, D4RL's fixed-goal protocol on PointMaze."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gymnasium as gym
import gymnasium_robotics
import numpy as np
from gymnasium.wrappers import TransformObservation

from aepo.files import StudyError, out_of_memory

if TYPE_CHECKING:
    from aepo.data.tasks import Task

gym.register_envs(gymnasium_robotics)

ONLY_VECTORS = "only vectors of real numbers can be used, not images and not discrete choices"
GOAL_RADIUS = 0.45
LARGEST = float(np.finfo(np.float32).max)  # of a number that networks can be given
TRIED_STEPS = 1_000  # that the environment of an own task is tried for, at most
GYMNASIUM = "reset must return (observation, info), step (observation, reward, terminated, truncated, info)"
MODULE = "module:name-v0 imports a module that is installed or in a folder of PYTHONPATH"
INSTALL = "it is tested with the packages of requirements.txt, which `make setup` installs"
MEND = "mend it and call this again"
_TRIED: set[str] = set()  # what `make` has tried in this process


class Maze2D(gym.Env):
    """A point mass in a PointMaze with one fixed goal, the same in every episode, which never terminates.

    Reward: 1 in each step that ends within 0.45 of the goal; exp(-distance) where `dense`. Observation (x, y, vx, vy)
    without the goal. `reset` starts in a random free cell, or in `options={"reset_cell": (row, column)}`.
    """

    metadata = {"render_modes": ["human", "rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, maze: str, goal_cell: tuple[int, int], dense: bool = False, render_mode: str | None = None):
        self._point = cast(Any, without_file(maze, render_mode=render_mode).unwrapped)
        self.maze = self._point.maze
        self.goal_cell, self.dense, self.render_mode = np.array(goal_cell), dense, render_mode
        self.goal = np.asarray(self.maze.cell_rowcol_to_xy(self.goal_cell), dtype=np.float64)
        self.observation_space = self._point.observation_space["observation"]
        self.action_space = self._point.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        cells = {"goal_cell": self.goal_cell} | (options or {})
        state = self._point.reset(seed=seed, options=cells)[0]["observation"]
        self._point.goal = self.goal.copy()
        self._point.update_target_site_pos()
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


for _title, _steps, _goal in (("UMaze", 300, (1, 1)), ("Medium", 600, (6, 6)), ("Large", 800, (7, 9))):  # as D4RL's
    for _dense in ({}, {"dense": True}):
        gym.register(
            f"aepo/Maze2D-{_title}{'Dense' * len(_dense)}-v0",
            entry_point="aepo.environments:Maze2D",
            kwargs={"maze": f"PointMaze_{_title}-v3", "goal_cell": _goal, **_dense},
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
        info = {"success": completed == len(self.get_wrapper_attr("goal")), "completed": completed}
        return observation, reward, terminated, truncated, info


class Guarded(gym.Wrapper):
    """Any environment as the study plays it: vectors, numbers and flags that are finite, actions inside its box."""

    def __init__(self, env: gym.Env, name: str, remedy: str):
        super().__init__(env)
        self._name, self._remedy = name, remedy

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        with guard(f"{self._name} failed in reset", self._remedy):
            observation, info = self.env.reset(seed=seed, options=options)
            return self._vector(observation), _with_success(info)

    def step(self, action: np.ndarray):
        box: Any = self.action_space
        with guard(f"{self._name} failed in step", self._remedy):
            action = np.minimum(np.maximum(np.asarray(action, box.dtype), box.low), box.high)  # rounded, it may be out
            observation, reward, terminated, truncated, info = self.env.step(action)
            reward = _number(reward, "the reward")
            ended = (bool(_number(flag, "terminated or truncated")) for flag in (terminated, truncated))
            return self._vector(observation), reward, *ended, _with_success(info)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # what was played stays played
            self.env.close()

    def _vector(self, value: Any) -> np.ndarray:
        """A copy of an observation, as some environments hand out what they go on changing."""
        array, shape = _array(value, "the observation"), self.observation_space.shape
        if array.shape != shape or array.dtype.kind not in "biuf":
            raise ValueError(f"the observation has type {array.dtype} and shape {array.shape}, its space {shape}")
        if not (np.abs(array) <= LARGEST).all():
            raise ValueError("the observation holds NaN, infinity or a number beyond float32")
        return array.astype(np.result_type(array, np.float32))  # where reset gives whole numbers, what follows may not


@contextlib.contextmanager
def guard(problem: str, remedy: str) -> Iterator[None]:
    """Whatever an environment raises becomes one sentence, but for a lack of memory, which is not its own."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, StudyError) or out_of_memory(error):
            raise
        said = GYMNASIUM if "unpack" in str(error) else " ".join(str(error).split())[:300]
        kind = "" if type(error) is ValueError or isinstance(error, gym.error.Error) else f"{type(error).__name__}: "
        raise StudyError(f"{problem} ({kind}{said}): {remedy}") from error


def _number(value: Any, name: str) -> float:
    """One number, also as an array of one; ValueError where it is something else."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf" or not abs(array.item()) <= LARGEST:
        raise ValueError(f"{name} is {value!r:.100}, not one finite number")
    return float(array.item())


def _with_success(info: Mapping[str, Any]) -> dict[str, Any]:
    """`info` with a `success` of 0, 1 or, where it says none, NaN."""
    if not isinstance(info, Mapping):
        raise ValueError(f"info is {info!r:.100}, not a dict")
    given = info.get("success")
    success = np.nan if given is None else _number(given, "info['success']")
    if given is not None and success not in (0, 1):
        raise ValueError(f"info['success'] is {given}, neither true nor false")
    return {**info, "success": success}


def _flat(env: gym.Env, keys: Sequence[str], zeros: int) -> gym.Env:
    """Observations as one array: the parts `keys` of a dict in that order, and `zeros` zeros at the end."""
    parts = [cast(gym.spaces.Dict, env.observation_space)[key] for key in keys] or [env.observation_space]
    more = np.zeros(zeros, parts[0].dtype)
    low, high = (np.concatenate([*(getattr(part, end) for part in parts), more]) for end in ("low", "high"))
    space = gym.spaces.Box(low, high, dtype=more.dtype)
    return TransformObservation(env, lambda found: np.concatenate([flatten(found, keys), more]), space)


def without_file(env_id: str, **arguments: Any) -> gym.Env:
    """`gym.make` for Gymnasium-Robotics' mazes, which leave their MuJoCo model in the temporary folder: it is removed."""
    env = gym.make(env_id, disable_env_checker=True, **arguments)
    if hasattr(env.unwrapped, "tmp_xml_file_path"):
        Path(env.unwrapped.tmp_xml_file_path).unlink(missing_ok=True)
    return env


def make(task: Task, flat: bool = True) -> gym.Env:
    """The environment that evaluates a task; `flat=False` leaves dict observations. StudyError where it does not fit.

    That of an own task is tried with random actions first, once in a process.
    """
    if task.env_id is None:
        why = task.note or "it names no environment"
        raise StudyError(f"task {task.name} is train-only ({why}): it has no rollouts")
    tried = repr((task.env_id, task.env_kwargs, task.horizon, task.observation_keys))
    if task.definition and tried not in _TRIED:
        with contextlib.closing(_made(task, True)) as env:
            _try(env, min(task.horizon, TRIED_STEPS))
        _TRIED.add(tried)
    return _made(task, flat)


def _try(env: gym.Env, steps: int) -> None:
    """Take random actions, which its guard looks at."""
    env.action_space.seed(0)
    ended = True
    for step in range(steps):
        if ended:
            env.reset(seed=step)
        ended = any(env.step(env.action_space.sample().astype(np.float32))[2:4])


def _made(task: Task, flat: bool) -> gym.Env:
    where = f"the environment {task.env_id} of task {task.name}"
    check = f"check env_kwargs and env_id ({MODULE})" if task.definition else INSTALL
    with guard(f"{where} cannot be made", check), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*")
        env = without_file(task.env_id or "", max_episode_steps=task.horizon, **task.env_kwargs)
        if (task.env_id or "").startswith("FrankaKitchen"):  # it hands out arrays that share memory with the simulation
            env = KitchenSuccess(TransformObservation(env, copy.deepcopy, env.observation_space))
        if task.observation_keys and not isinstance(env.observation_space, gym.spaces.Dict):
            raise StudyError(f"{where} has plain observations: leave observation_keys empty")
        size = observation_size(env.observation_space, task.observation_keys, where) + task.zeros
        found = (size, action_box(env.action_space, where).shape[0])
    if task.dimensions and found != task.dimensions:
        raise StudyError(f"{where} has {found[0]} observations and {found[1]} actions, the task {task.dimensions}")
    if task.zeros or (flat and task.observation_keys):
        env = _flat(env, task.observation_keys, task.zeros)
    return Guarded(env, where, MEND if task.definition else INSTALL) if env.observation_space.shape else env


def spec(task: Task) -> gym.envs.registration.EnvSpec | None:
    """What is stored of a task's environment beside its data; None where it has none that JSON can tell."""
    try:
        found = gym.spec((task.env_id or "").rpartition(":")[2])
        found = replace(found, kwargs={**found.kwargs, **task.env_kwargs}, max_episode_steps=task.horizon)
        found.to_json()
    except (gym.error.Error, TypeError, ValueError):
        return None
    return found


def observation_size(space: gym.Space, keys: Sequence[str], name: str) -> int:
    """Numbers in an observation: of a box all, of a dict those of the parts `keys`; StudyError where it has others."""
    if isinstance(space, gym.spaces.Dict):
        if not keys or not set(keys) <= set(space):
            parts, taken = ", ".join(space), ", ".join(keys) or "plain arrays"
            vectors = any(len(part.shape or ()) == 1 for part in space.values())
            remedy = "name the parts to take in the task's observation_keys" if vectors else ONLY_VECTORS
            raise StudyError(f"{name} has dict observations with the parts {parts}, its task takes {taken}: {remedy}")
        return sum(observation_size(space[key], (), name) for key in keys)
    check_vectors(space.shape, space.dtype, "observations", name)
    return cast(tuple, space.shape)[0]


def action_box(space: gym.Space, name: str) -> gym.spaces.Box:
    """The action space as a bounded box of vectors; StudyError where it is something else."""
    if not isinstance(space, gym.spaces.Box):
        raise StudyError(f"{name} has the action space {space}: {ONLY_VECTORS}")
    check_vectors(space.shape, space.dtype, "actions", name)
    with np.errstate(over="ignore", invalid="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    if not ((width > 0) & (width < np.inf)).all():
        kind = "unbounded" if np.isinf(width).any() else "flat"
        needed = "as actions are scaled by their bounds, each side needs a finite low below a finite high"
        raise StudyError(f"{name} has the {kind} action space {space}: {needed}")
    return space


def check_vectors(shape: tuple[int, ...] | None, dtype: np.dtype | None, what: str, name: str) -> None:
    """One of `what` (observations, actions) is a vector of numbers; StudyError where it is an image or a choice."""
    if len(shape or ()) != 1 or dtype is None or dtype.kind not in ("f" if what == "actions" else "fi"):
        raise StudyError(f"{name} has {what} of type {dtype} and shape {shape}: {ONLY_VECTORS}")


def flatten(observation: Any, keys: Sequence[str]) -> np.ndarray:
    """The parts `keys` of a dict observation, one or a batch, joined along the last axis; arrays pass as they are.

    ValueError where parts are missing, where there should be none, or where they do not fit together.
    """
    if not isinstance(observation, Mapping):
        return _array(observation, "the observation")
    missing = [key for key in keys if key not in observation]
    if missing or not keys:
        problem = f"it lacks {', '.join(missing)}" if missing else "an array is needed here"
        raise ValueError(f"the observation is a dict of {', '.join(map(str, observation))}: {problem}")
    parts = {key: _array(observation[key], f"the observation's part {key}") for key in keys}
    if len({part.shape[:-1] for part in parts.values()}) > 1 or any(part.ndim == 0 for part in parts.values()):
        shown = ", ".join(f"{key} {part.shape}" for key, part in parts.items())
        raise ValueError(f"the parts of the observation do not fit together: {shown}")
    return np.concatenate(list(parts.values()), axis=-1)


def _array(value: Any, name: str) -> np.ndarray:
    """A NumPy array, also of a torch tensor of any device and type; ValueError where it is none."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise ValueError(f"{name} is a list of unequal lengths, or of what is no number: an array is needed") from None
