"""A Minari dataset's transitions as arrays, read in bulk and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space

from aepo import environments
from aepo.data import checks, storage
from aepo.data.tasks import Task
from aepo.files import StudyError

KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
DELETE = "delete its folder and get it again"
REOPEN = 500  # episodes after which the file is opened anew: HDF5 keeps 20 kB a short episode until it is closed


def metadata(folder: Path, dataset_id: str) -> dict[str, Any]:
    """A dataset's metadata, checked: of this dataset, of a Minari version that can be read."""
    path = folder / "data" / "metadata.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise StudyError(f"dataset {dataset_id}: {path} cannot be read ({reason}): {DELETE}") from None
    version = found.get("minari_version")
    if version not in minari.supported_dataset_versions:
        raise StudyError(
            f"dataset {dataset_id} was written by Minari {version}, which Minari {minari.__version__} cannot read: "
            "get a version of it that fits, or another Minari"
        )
    if found.get("dataset_id") != dataset_id:
        raise StudyError(
            f"{folder} holds the dataset {found.get('dataset_id')}, not {dataset_id}: move it to its own folder"
        )
    if not found.get("total_episodes") or not found.get("total_steps"):
        raise StudyError(f"dataset {dataset_id} is empty: it holds no episode; {DELETE}")
    return found


def spaces(found: Mapping[str, Any], folder: Path) -> tuple[gym.Space, gym.Space]:
    """Observation and action space of a dataset; of its environment where old metadata lack them."""
    try:
        if "observation_space" in found and "action_space" in found:
            return deserialize_space(found["observation_space"]), deserialize_space(found["action_space"])
        _check_registered(found)
        storage = MinariStorage.read(folder / "data")
    except Exception as error:
        raise StudyError(f"{folder} names spaces that cannot be read ({error}): {DELETE}") from None
    return storage.observation_space, storage.action_space


def _check_registered(found: Mapping[str, Any]) -> None:
    """The environment that metadata name is one that is known here: Minari would call whatever function they name."""
    spec = json.loads(found["env_spec"])
    known = gym.registry.get(spec["id"])
    if known is None or known.entry_point != spec["entry_point"] or spec.get("additional_wrappers"):
        raise ValueError(f"their environment {spec['id']} is none of this installation")


def transitions(
    folder: Path, dataset_id: str, task: Task, clip: bool = False
) -> tuple[dict[str, np.ndarray], gym.spaces.Box, tuple[str, ...]]:
    """Arrays by the names of `Dataset`'s fields, the action box, and warnings; every check has been passed.

    state, next_state `(N, n)`, action `(N, d)` as recorded, reward, terminated, truncated `(N,)` float32, episode `(N,)`
    int64. `clip` moves actions into the box instead of refusing those outside.
    """
    name, found = f"dataset {dataset_id}", metadata(folder, dataset_id)
    observation_space, action_space = spaces(found, folder)
    size = checks.observation_parts(observation_space, task.observation_keys, name)
    box = checks.action_box(action_space, name)
    expected = check_task(task, (size, box.shape[0]), name)
    if expected is not None:
        checks.same_box(box, expected, name, f"the environment {task.env_id}")
    parts = task.observation_keys if isinstance(observation_space, gym.spaces.Dict) else ()
    count, width = found["total_steps"], box.shape[0]
    arrays = {
        "state": np.empty((count, size), np.float32),
        "next_state": np.empty((count, size), np.float32),
        "action": np.empty((count, width), np.float32),
        **{key: np.empty(count, np.float32) for key in ("reward", "terminated", "truncated")},
        "episode": np.empty(count, np.int64),
    }
    at = episodes = 0
    with np.errstate(over="ignore"):
        for i, (observations, actions, rewards, terminations, truncations) in enumerate(
            _episodes(folder, found, parts, name)
        ):
            steps = len(rewards)
            _check_episode(i, observations, actions, rewards, terminations, truncations, size, width, name)
            if at + steps > count:
                break
            rows = slice(at, at + steps)
            column = 0
            for part in observations:
                columns = slice(column, column + part.shape[1])
                arrays["state"][rows, columns], arrays["next_state"][rows, columns] = part[:-1], part[1:]
                column += part.shape[1]
            arrays["action"][rows], arrays["reward"][rows] = actions, rewards
            arrays["terminated"][rows], arrays["truncated"][rows] = terminations, truncations
            arrays["episode"][rows] = i
            at, episodes = at + steps, i + 1
    if (at, episodes) != (count, found["total_episodes"]):
        raise StudyError(
            f"{name} should hold {count} steps in {found['total_episodes']} episodes and does not: it is damaged, {DELETE}"
        )
    checks.finite(arrays, name)
    warnings = checks.odd(arrays)
    outside, most = checks.outside(arrays["action"], box)
    if clip and outside:
        np.clip(arrays["action"], box.low, box.high, out=arrays["action"])
        warnings += (f"{outside} of {count} actions were outside the box, by {most:.3g} at most, and are clipped",)
    checks.inside_box(arrays["action"], box, name, f"`aepo data get {task.argument} --clip` has them moved into it")
    return arrays, box, warnings


def check_task(task: Task, sizes: tuple[int, int], name: str) -> gym.spaces.Box | None:
    """Sizes of observation and action are those of the task and its environment; returns that one's action box."""
    if task.dimensions:
        checks.same_sizes(sizes, task.dimensions, name, f"task {task.name}")
    if task.env_id is None:
        return None
    env, where = environments.make(task), f"the environment {task.env_id}"
    try:
        box = checks.action_box(env.action_space, where)
        checks.same_sizes(sizes, (env.observation_space.shape[0], box.shape[0]), name, where)
    finally:
        env.close()
    return box


def _check_episode(
    i: int,
    observations: list[np.ndarray],
    actions: np.ndarray,
    rewards: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
    size: int,
    width: int,
    name: str,
) -> None:
    steps = len(rewards)
    if not steps:
        raise StudyError(f"{name}: episode {i} has length 0; it is damaged, {DELETE}")
    shapes = [part.shape for part in observations]
    right = (
        all(len(shape) == 2 and shape[0] == steps + 1 for shape in shapes)
        and sum(shape[1] for shape in shapes) == size
        and actions.shape == (steps, width)
        and rewards.shape == terminations.shape == truncations.shape == (steps,)
    )
    if not right:
        found = {"actions": actions.shape, "terminations": terminations.shape, "truncations": truncations.shape}
        shown = ", ".join(f"{key} {shape}" for key, shape in ({"observations": shapes[0]} | found).items())
        raise StudyError(f"{name}: the arrays of episode {i} with {steps} rewards differ in length ({shown}): {DELETE}")


Episode = tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _episodes(folder: Path, found: Mapping[str, Any], parts: tuple[str, ...], name: str) -> Iterator[Episode]:
    """(observation parts, actions, rewards, terminations, truncations) of each episode."""
    if found.get("data_format", "hdf5") != "hdf5":
        for episode in MinariStorage.read(folder / "data").get_episodes(range(found["total_episodes"])):
            observations = episode["observations"]
            chosen = [observations[key] for key in parts] if parts else [observations]
            yield [np.asarray(part) for part in chosen], *(np.asarray(episode[key]) for key in KEYS[1:])
        return
    path, count = folder / "data" / "main_data.hdf5", found["total_episodes"]
    names = [f"observations/{part}" for part in parts] or ["observations"]
    for start in range(0, count, REOPEN):
        with open_hdf5(path) as file:
            for i in range(start, min(start + REOPEN, count)):
                try:
                    arrays = [_array(file, f"episode_{i}/{key}") for key in (*names, *KEYS[1:])]
                except KeyError as error:
                    raise StudyError(f"{name}: episode {i} lacks a key ({error.args[0]}): {DELETE}") from None
                except OSError as error:
                    raise StudyError(f"{path} is damaged at episode {i} ({storage.reason(error)}): {DELETE}") from None
                yield arrays[: len(names)], *arrays[len(names) :]


def _array(file: h5py.File, name: str) -> np.ndarray:
    """One array, through h5py's low-level functions: a third of the time with thousands of short episodes."""
    dataset = h5py.h5d.open(file.id, name.encode())
    array = np.empty(dataset.shape, dataset.dtype)
    if array.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def open_hdf5(path: Path) -> h5py.File:
    """The file opened for reading; StudyError where it cannot be read, is truncated or is something else."""
    if path.is_dir():
        raise StudyError(f"{path} is a folder, not an HDF5 file")
    try:
        return h5py.File(path, "r")
    except PermissionError:
        raise StudyError(f"{path} cannot be read: no permission") from None
    except FileNotFoundError:
        raise StudyError(f"there is no file {path}") from None
    except OSError as error:
        kind = "is truncated" if "truncated" in str(error) else "is not an HDF5 file, or a damaged one"
        raise StudyError(f"{path} {kind} ({storage.reason(error)}): get it again") from None
