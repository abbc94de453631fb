"""A Minari dataset's transitions as arrays, read episode by episode and checked."""

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

from aepo import environments
from aepo.data import checks, storage
from aepo.data.tasks import Task
from aepo.files import StudyError

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


def transitions(
    folder: Path, dataset_id: str, task: Task, clip: bool = False
) -> tuple[dict[str, np.ndarray], gym.spaces.Box, tuple[str, ...]]:
    """Arrays by the names of `Dataset`'s fields, the action box, and warnings; every check has been passed.

    state, next_state `(N, n)`, action `(N, d)` as recorded, reward, terminated, truncated `(N,)` float32, episode `(N,)`
    int64. `clip` moves actions into the box instead of refusing those outside.
    """
    name, found = f"dataset {dataset_id}", metadata(folder, dataset_id)
    stored = _open_dataset(folder, found)
    size = checks.observation_size(stored.observation_space, task.observation_keys, name)
    box = checks.action_box(stored.action_space, name)
    expected = environment_box(task, (size, box.shape[0]), name)
    if expected is not None:
        checks.same_box(box, expected, name, f"the environment {task.env_id}")
    count, episodes, width = found["total_steps"], found["total_episodes"], box.shape[0]
    arrays = {
        "state": np.empty((count, size), np.float32),
        "next_state": np.empty((count, size), np.float32),
        "action": np.empty((count, width), np.float32),
        **{key: np.empty(count, np.float32) for key in ("reward", "terminated", "truncated")},
        "episode": np.empty(count, np.int64),
    }
    at = 0
    with np.errstate(over="ignore"):
        for i, recorded in enumerate(_episodes(stored, episodes, name)):
            observations = _checked_observations(i, recorded, task.observation_keys, size, width, name)
            rows = slice(at, at + len(observations) - 1)
            if rows.stop > count:
                break
            arrays["state"][rows], arrays["next_state"][rows] = observations[:-1], observations[1:]
            arrays["action"][rows], arrays["reward"][rows] = recorded["actions"], recorded["rewards"]
            arrays["terminated"][rows] = recorded["terminations"]
            arrays["truncated"][rows] = recorded["truncations"]
            arrays["episode"][rows] = i
            at = rows.stop
    if at != count or rows.stop > count:
        raise StudyError(
            f"{name} should hold {count} steps in {episodes} episodes and does not: it is damaged, {DELETE}"
        )
    checks.finite(arrays, name)
    reward = arrays["reward"]
    same = count > 1 and (reward == reward[0]).all()
    warnings = (f"all {count} rewards are {reward[0]:g}: nothing can be learned from them",) if same else ()
    outside, most = checks.outside_box(arrays["action"], box)
    if clip and outside:
        np.clip(arrays["action"], box.low, box.high, out=arrays["action"])
        warnings += (f"{outside} of {count} actions were outside the box, by {most:.3g} at most, and are clipped",)
    checks.inside_box(arrays["action"], box, name, f"`aepo data get {task.argument} --clip` has them moved into it")
    return arrays, box, warnings


def environment_box(task: Task, sizes: tuple[int, int], name: str) -> gym.spaces.Box | None:
    """The action box of the task's environment, None where it has none; StudyError where sizes are not the task's."""
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


def _open_dataset(folder: Path, found: Mapping[str, Any]) -> MinariStorage:
    """Minari's reader of a dataset; where old metadata lack the spaces, it makes the environment that they name."""
    if found.get("data_format", "hdf5") == "hdf5":
        open_hdf5(folder / "data" / "main_data.hdf5").close()
    try:
        if "observation_space" not in found or "action_space" not in found:
            _check_registered(json.loads(found["env_spec"]))
        return MinariStorage.read(folder / "data")
    except Exception as error:
        raise StudyError(f"{folder} names spaces that cannot be read ({error}): {DELETE}") from None


def _check_registered(spec: Mapping[str, Any]) -> None:
    """The environment that metadata name is one that is known here: Minari would call whatever function they name."""
    known = gym.registry.get(spec["id"])
    if known is None or known.entry_point != spec["entry_point"] or spec.get("additional_wrappers"):
        raise ValueError(f"their environment {spec['id']} is none of this installation")


def _episodes(stored: MinariStorage, count: int, name: str) -> Iterator[dict[str, Any]]:
    """Each episode as Minari reads it."""
    for start in range(0, count, REOPEN):
        episodes = stored.get_episodes(range(start, min(start + REOPEN, count)))
        for i in range(start, min(start + REOPEN, count)):
            try:
                yield next(episodes)
            except KeyError as error:
                raise StudyError(f"{name}: episode {i} lacks a key ({error.args[0]}): {DELETE}") from None
            except OSError as error:
                raise StudyError(f"{name} is damaged at episode {i} ({storage.reason(error)}): {DELETE}") from None


def _checked_observations(
    i: int, recorded: Mapping[str, Any], keys: tuple[str, ...], size: int, width: int, name: str
) -> np.ndarray:
    """The observations `(T + 1, size)` of episode `i` of T steps; StudyError where its arrays do not fit together."""
    steps = len(recorded["rewards"])
    if not steps:
        raise StudyError(f"{name}: episode {i} has length 0; it is damaged, {DELETE}")
    try:
        observations = environments.flatten(recorded["observations"], keys)
    except ValueError as error:
        raise StudyError(f"{name}: episode {i}: {error}: {DELETE}") from None
    wanted = dict.fromkeys(("rewards", "terminations", "truncations"), (steps,))
    wanted |= {"observations": (steps + 1, size), "actions": (steps, width)}
    shapes = {key: array.shape for key, array in {**recorded, "observations": observations}.items() if key in wanted}
    if shapes != wanted:
        shown = ", ".join(f"{key} {shape}" for key, shape in shapes.items() if key != "rewards")
        raise StudyError(f"{name}: the arrays of episode {i} with {steps} rewards differ in length ({shown}): {DELETE}")
    return observations


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
