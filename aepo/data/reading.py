"""A Minari dataset's transitions as arrays, read episode by episode; each violation of a check is one sentence."""

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
from aepo.data import storage
from aepo.data.tasks import Task
from aepo.files import StudyError

DELETE = "delete its folder and get it again"
TOLERANCE = 1e-6  # of the action box's width: rounding, not a violation
STEPWISE = ("actions", "rewards", "terminations", "truncations")
REOPEN = 500  # episodes after which the file is opened anew: HDF5 keeps 20 kB a short episode until it is closed


def metadata(folder: Path, dataset_id: str) -> dict[str, Any]:
    """A dataset's metadata, checked: of this dataset, of a Minari version that can be read."""
    path = folder / "data" / "metadata.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not JSON"
        raise StudyError(f"dataset {dataset_id}: {path} cannot be read ({reason}): {DELETE}") from None
    version, owner, kind = found.get("minari_version"), found.get("dataset_id"), found.get("data_format", "hdf5")
    name = f"dataset {dataset_id}"
    problems = {
        f"{name} was written by Minari {version}, which Minari {minari.__version__} cannot read: get a version of it that "
        "fits, or another Minari": version not in minari.supported_dataset_versions,
        f"{folder} holds the dataset {owner}, not {dataset_id}: move it to its own folder": owner != dataset_id,
        f"{name} is stored as {kind}: only HDF5 is read, get it as that": kind != "hdf5",
        f"{name} is empty: it holds no episode; {DELETE}": not (
            found.get("total_episodes") and found.get("total_steps")
        ),
    }
    for problem in (sentence for sentence, holds in problems.items() if holds):
        raise StudyError(problem)
    return found


def transitions(folder: Path, dataset_id: str, task: Task) -> tuple[dict[str, np.ndarray], gym.spaces.Box, list[str]]:
    """Arrays by the names of `Dataset`'s fields, checked, actions as recorded; the action box, and warnings.

    Actions outside the box are moved into it where that was asked for (`storage.is_clipped`), else refused.
    """
    name, found = f"dataset {dataset_id}", metadata(folder, dataset_id)
    observation_space, action_space = _spaces(folder, found)
    size = environments.observation_size(observation_space, task.observation_keys, name)
    box = environments.action_box(action_space, name)
    count, episodes, width = found["total_steps"], found["total_episodes"], box.shape[0]
    expected = environment_box(task, (size, width), name)
    if expected and not (np.allclose(box.low, expected.low) and np.allclose(box.high, expected.high)):
        other = f"the environment {task.env_id} {expected}"
        raise StudyError(f"{name} has the action space {box}, {other}: it belongs to another version of it")
    shapes = {"state": (count, size), "next_state": (count, size), "action": (count, width)}
    shapes |= dict.fromkeys(("reward", "terminated", "truncated"), (count,))
    arrays = {key: np.empty(shape, np.float32) for key, shape in shapes.items()} | {
        "episode": np.empty(count, np.int64)
    }
    at = 0
    for i, recorded in enumerate(_episodes(folder, episodes, task.observation_keys, name)):
        steps, observations = len(recorded["rewards"]), recorded["observations"]
        wanted = dict.fromkeys(STEPWISE, (steps,)) | {"observations": (steps + 1, size), "actions": (steps, width)}
        if not steps or wanted != {key: array.shape for key, array in recorded.items()}:
            shown = ", ".join(f"{key} {array.shape}" for key, array in recorded.items())
            raise StudyError(
                f"{name}: episode {i} has length {steps}, and its arrays {shown}: they are damaged, {DELETE}"
            )
        rows = slice(at, at + steps)
        if rows.stop > count:
            break
        with np.errstate(over="ignore"):
            arrays["state"][rows], arrays["next_state"][rows] = observations[:-1], observations[1:]
            arrays["action"][rows], arrays["reward"][rows] = recorded["actions"], recorded["rewards"]
        arrays["terminated"][rows], arrays["truncated"][rows] = recorded["terminations"], recorded["truncations"]
        arrays["episode"][rows] = i
        at = rows.stop
    if at != count or rows.stop > count:
        holds = f"{count} steps in {episodes} episodes"
        raise StudyError(f"{name} should hold {holds} and does not: it is damaged, {DELETE}")
    check_finite(arrays, name)
    reward, warnings = arrays["reward"], []
    if count > 1 and (reward == reward[0]).all():
        warnings.append(f"all {count} rewards are {reward[0]:g}: nothing can be learned from them")
    outside = outside_box(arrays["action"], box)
    if outside and not storage.is_clipped(folder):
        raise StudyError(f"{name}: {outside}: `aepo data get {task.argument} --clip` has them moved into it")
    if outside:
        np.clip(arrays["action"], box.low, box.high, out=arrays["action"])
        warnings.append(f"{outside}, and are clipped")
    return arrays, box, warnings


def environment_box(task: Task, sizes: tuple[int, int], name: str) -> gym.spaces.Box | None:
    """The action box of the task's environment, None where it has none; StudyError where sizes are not the task's."""
    box, expected, other = None, task.dimensions, f"task {task.name}"
    if task.env_id and not (expected and expected != sizes):
        env, other = environments.make(task), f"the environment {task.env_id}"
        box, expected = env.action_space, (env.observation_space.shape[0], env.action_space.shape[0])
        env.close()
    if expected and expected != sizes:
        has = f"{name} has {sizes[0]} observations and {sizes[1]} actions, {other} {expected[0]} and {expected[1]}"
        raise StudyError(f"{has}: it belongs to another task")
    return box


def check_finite(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """No NaN, no infinity; the sentence says in which array and at which step first."""
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = np.argwhere(~np.isfinite(array))
            raise StudyError(f"{name}: {key} holds NaN or infinity ({len(wrong)} numbers, first at step {wrong[0, 0]})")


def outside_box(actions: np.ndarray, box: gym.spaces.Box) -> str:
    """How many actions `(N, d)` leave the box, and by how much at most; "" where none does but for rounding."""
    excess = np.maximum(box.low - actions, actions - box.high)
    count = (excess > TOLERANCE * (box.high - box.low)).any(1).sum()
    said = f"{count} of {len(actions)} actions are outside the action box, by {excess.max():.3g} at most"
    return said if count else ""


def _spaces(folder: Path, found: Mapping[str, Any]) -> tuple[gym.Space, gym.Space]:
    """Of observations and actions; where old metadata lack them, of the environment they name, which must be registered."""
    open_hdf5(folder / "data" / "main_data.hdf5").close()
    try:
        if "observation_space" not in found or "action_space" not in found:
            spec = json.loads(found["env_spec"])
            known = gym.registry.get(spec["id"])
            if known is None or known.entry_point != spec["entry_point"] or spec.get("additional_wrappers"):
                raise ValueError(f"their environment {spec['id']} is none of this installation")
        stored = MinariStorage.read(folder / "data")
    except Exception as error:
        raise StudyError(f"{folder} names spaces that cannot be read ({error}): {DELETE}") from None
    return stored.observation_space, stored.action_space


def _episodes(folder: Path, count: int, keys: tuple[str, ...], name: str) -> Iterator[dict[str, np.ndarray]]:
    """Each episode of Minari's file, its observations flat: only what is needed of it, which is faster than Minari."""
    for start in range(0, count, REOPEN):
        with open_hdf5(folder / "data" / "main_data.hdf5") as file:
            for i in range(start, min(start + REOPEN, count)):
                try:
                    episode = file[f"episode_{i}"]
                    observed = episode["observations"]
                    grouped = isinstance(observed, h5py.Group)
                    parts = {key: observed[key][()] for key in keys} if grouped else observed[()]
                    stepwise = {key: episode[key][()] for key in STEPWISE}
                    yield stepwise | {"observations": environments.flatten(parts, keys)}
                except (KeyError, ValueError, OSError) as error:
                    kind = "lacks a key" if isinstance(error, KeyError) else "is damaged"
                    reason = error if isinstance(error, ValueError) else storage.reason(error)
                    raise StudyError(f"{name}: episode {i} {kind} ({reason}): {DELETE}") from None


def open_hdf5(path: Path) -> h5py.File:
    """The file opened for reading; StudyError where it cannot be read, is truncated or is something else."""
    if path.is_dir():
        raise StudyError(f"{path} is a folder, not an HDF5 file")
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise StudyError(f"there is no file {path}") from None
    except PermissionError:
        raise StudyError(f"{path} cannot be read: no permission") from None
    except OSError as error:
        kind = "is truncated" if "truncated" in str(error) else "is not an HDF5 file, or a damaged one"
        raise StudyError(f"{path} {kind} ({storage.reason(error)}): get it again") from None
