"""A Minari dataset's transitions as arrays, read episode by episode; each violation of a check is one sentence."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import h5py
import minari
import numpy as np
from minari.dataset.minari_storage import MinariStorage

from aepo import environments
from aepo.data import storage
from aepo.data.tasks import Task
from aepo.files import StudyError

TOLERANCE = 1e-6  # of the action box's width: rounding, not a violation
ENORMOUS = 1e6  # times what 99% of an array's numbers stay below
WHOLE = "give the path of a whole HDF5 file"
STEPWISE = ("actions", "rewards", "terminations", "truncations")
STORED = {"state": "observations", "next_state": "observations", "action": "actions", "reward": "rewards"}
TYPES: dict[str, Any] = dict.fromkeys(("total_episodes", "total_steps"), int)
TYPES |= dict.fromkeys(("minari_version", "dataset_id", "data_format", "observation_space", "action_space"), str)
TYPES |= dict.fromkeys(("ref_min_score", "ref_max_score"), float | int | None)
REOPEN = 500  # episodes after which the file is opened anew: HDF5 keeps 20 kB a short episode until it is closed


def metadata(folder: Path, dataset_id: str) -> dict[str, Any]:
    """A dataset's metadata, checked: of this dataset, of a Minari version that can be read."""
    path, name, remedy = folder / "data" / "metadata.json", f"dataset {dataset_id}", storage.remake(folder)
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _kind(path) or "it is not JSON"
        raise StudyError(f"{name}: {path} cannot be read ({reason}): {remedy}") from None
    if not isinstance(found, dict):
        raise StudyError(f"{name}: {path} holds no keys: {remedy}")
    for key in TYPES.keys() & found.keys():
        if not isinstance(found[key], TYPES[key]):
            raise StudyError(f"{name}: {path} has {key} {found[key]!r}, of a wrong type: {remedy}")
    version, owner, kind = found.get("minari_version"), found.get("dataset_id"), found.get("data_format", "hdf5")
    fewest = min(found.get("total_episodes", 0), found.get("total_steps", 0))
    problems = {
        f"{name} was written by Minari {version}, which Minari {minari.__version__} cannot read: get a version of it that "
        "fits, or another Minari": version not in minari.supported_dataset_versions,
        f"{folder} holds the dataset {owner}, not {dataset_id}: move it to its own folder": owner != dataset_id,
        f"{name} is stored as {kind}: only HDF5 is read, have Minari write it as that": kind != "hdf5",
        f"{name} is empty: it holds no episode; {remedy}": fewest <= 0,
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
    shapes: dict[str, tuple[int, ...]] = {"state": (count, size), "next_state": (count, size), "action": (count, width)}
    shapes |= dict.fromkeys(("reward", "terminated", "truncated"), (count,))
    arrays = {key: np.empty(shape, np.float32) for key, shape in shapes.items()}
    arrays["episode"] = np.empty(count, np.int64)
    at, remedy = 0, storage.remake(folder)
    recordings = episodes_of(folder / "data" / "main_data.hdf5", episodes, task, name, remedy, (size, width))
    for i, recorded in enumerate(recordings):
        steps, observations = len(recorded["rewards"]), recorded["observations"]
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
        raise StudyError(f"{name} should hold {holds} and does not: it is damaged, {remedy}")

    def where(key: str, row: int) -> str:
        episode = arrays["episode"][row]
        return f", in episode_{episode}/{STORED[key]}, row {row - np.searchsorted(arrays['episode'], episode)}"

    warnings, reward = check_numbers(arrays, name, where), arrays["reward"]
    if count > 1 and (reward == reward[0]).all():
        warnings.append(f"all {count} rewards are {reward[0]:g}: nothing can be learned from them")
    warnings += into_box(arrays["action"], box, storage.is_clipped(folder), name, f"get {task.argument}")
    return arrays, box, warnings


def environment_box(task: Task, sizes: tuple[int, int], name: str) -> gym.spaces.Box | None:
    """The action box of the task's environment, None where it has none; StudyError where sizes are not the task's."""
    box, expected, other = None, task.dimensions, f"task {task.name}"
    if task.env_id and not (expected and expected != sizes):
        env, other = cast(Any, environments.make(task)), f"the environment {task.env_id}"
        box, expected = env.action_space, (env.observation_space.shape[0], env.action_space.shape[0])
        env.close()
    if expected and expected != sizes:
        has = f"{name} has {sizes[0]} observations and {sizes[1]} actions, {other} {expected[0]} and {expected[1]}"
        raise StudyError(f"{has}: it belongs to another task")
    return box


def check_numbers(arrays: Mapping[str, np.ndarray], name: str, where=lambda key, row: "") -> list[str]:
    """No NaN, nothing infinite in float32: the sentence says where. A warning for each array of enormous numbers."""
    warnings = []
    for key, array in arrays.items():
        size = np.abs(array.reshape(len(array), -1)) if array.dtype.kind == "f" else np.zeros((1, 1))
        if (wrong := ~(size <= np.finfo(np.float32).max)).any():
            row = int(np.argmax(wrong.any(1)))
            first = f"{wrong.sum()} numbers, first at step {row}"
            raise StudyError(f"{name}: {key} holds NaN or infinity ({first}){where(key, row)}: correct or remove them")
        size = size.max(1).astype(np.float64)
        enormous = size > min(ENORMOUS * max(1.0, np.quantile(size, 0.99, method="lower")), 1e15)
        if enormous.any():
            row = int(np.argmax(enormous))
            said = f"{key} holds enormous numbers in {enormous.sum()} steps (first {size[row]:.3g} at step {row})"
            warnings.append(f"{said}{where(key, row)}: correct or remove them, nothing can be learned beside them")
    return warnings


def into_box(actions: np.ndarray, box: gym.spaces.Box, clip: bool, name: str, call: str) -> list[str]:
    """Move actions `(N, d)` into the box and say how many were outside; StudyError without `clip`, which `call` gives."""
    excess = np.maximum(box.low - actions, actions - box.high)
    count = (excess > TOLERANCE * (box.high - box.low)).any(1).sum()
    outside = f"{count} of {len(actions)} actions are outside the action box, by {excess.max():.3g} at most"
    if count and not clip:
        raise StudyError(f"{name}: {outside}: `aepo data {call} --clip` moves them into it")
    if not clip:
        return []
    np.clip(actions, box.low, box.high, out=actions)
    return [f"{outside}, and were moved into it" if count else "no action is outside the action box: --clip moved none"]


def numbers(group: h5py.Group, key: str) -> np.ndarray:
    """An array of real numbers; ValueError where there is none: a group, text, complex numbers, a link to nowhere."""
    try:
        found = group[key]
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            raise ValueError(f"{key} is {'a group' if isinstance(found, h5py.Group) else 'empty'}, not an array")
        if found.dtype.kind not in "biuf":
            raise ValueError(f"{key} is of type {found.dtype}, not of real numbers")
        return found[()]
    except KeyError:
        raise ValueError(f"{key} is {'a link to nothing' if key in list(group) else 'missing'}") from None
    except OSError:
        raise ValueError(f"the bytes of {key} are damaged") from None


def flags(values: np.ndarray, key: str) -> np.ndarray:
    """Numbers 0 or 1 as bool `(N,)`; ValueError names the first row where it is something else."""
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise ValueError(f"{key} must be 0 or 1, and is {values.flat[wrong[0]]:g} in row {wrong[0]}")
    return values.astype(bool)


def _spaces(folder: Path, found: Mapping[str, Any]) -> tuple[gym.Space, gym.Space]:
    """Of observations and actions; where old metadata lack them, of the environment they name, which must be registered."""
    open_hdf5(folder / "data" / "main_data.hdf5", storage.remake(folder)).close()
    why = "they are none of Gymnasium's"
    try:
        if "observation_space" not in found or "action_space" not in found:
            why = "they are left out, and no environment is named"
            spec = json.loads(found["env_spec"])
            why, known = f"their environment {spec['id']} is none of this installation", gym.registry.get(spec["id"])
            if known is None or known.entry_point != spec["entry_point"] or spec.get("additional_wrappers"):
                raise ValueError(why)
        stored = MinariStorage.read(folder / "data")
    except Exception:
        remedy = "get a version whose metadata hold observation_space and action_space"
        raise StudyError(f"{folder} names spaces that cannot be read ({why}): {remedy}") from None
    return stored.observation_space, stored.action_space


def episodes_of(
    path: Path, count: int, task: Task, name: str, remedy: str, sizes: tuple[int, int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Each episode of Minari's file, flat, of these `sizes` or the first's: only what is needed, faster than Minari."""
    keys = task.observation_keys
    for start in range(0, count, REOPEN):
        with open_hdf5(path, remedy) as file:
            for i in range(start, min(start + REOPEN, count)):
                try:
                    if not isinstance(episode := file.get(f"episode_{i}"), h5py.Group):
                        raise ValueError(f"its group episode_{i} is missing")
                    observed = episode.get("observations")
                    grouped = isinstance(observed, h5py.Group) and keys
                    parts = {k: numbers(observed, k) for k in keys} if grouped else numbers(episode, "observations")
                    found = {key: numbers(episode, key) for key in STEPWISE}
                    found |= {"observations": environments.flatten(parts, keys)}
                    found |= {key: flags(found[key], key) for key in STEPWISE[2:]}
                except (ValueError, OSError) as error:
                    kind = "lacks a key" if "missing" in str(error) else "is damaged"
                    raise StudyError(f"{name}: episode {i} {kind} ({error}): {remedy}") from None
                steps = found["rewards"].size
                sizes = sizes or tuple(found[key].shape[-1] for key in ("observations", "actions") if found[key].ndim)
                wanted: dict[str, tuple[int, ...]] = dict.fromkeys(STEPWISE, (steps,))
                wanted |= {"observations": (steps + 1, *sizes[:1]), "actions": (steps, *sizes[1:])}
                if not steps or wanted != {key: array.shape for key, array in found.items()}:
                    shown = ", ".join(f"{key} {array.shape}" for key, array in found.items())
                    problem = f"has length {steps}, and its arrays {shown}: they are damaged"
                    raise StudyError(f"{name}: episode {i} {problem}, {remedy}")
                yield found


def open_hdf5(path: Path, remedy: str = WHOLE) -> h5py.File:
    """The file opened for reading; StudyError where it cannot be read, is truncated or is something else."""
    if path.is_dir():
        raise StudyError(f"{path} is a folder, not an HDF5 file: name a file in it")
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise StudyError(f"there is no file {path}: {remedy}") from None
    except PermissionError:
        raise StudyError(f"{path} cannot be read: no permission") from None
    except OSError as error:
        kind = "is truncated" if "truncated" in str(error) else "is not an HDF5 file, or a damaged one"
        also = _kind(path)
        raise StudyError(f"{path} {kind}{f' ({also})' if also else ''}: {remedy}") from None


def _kind(path: Path) -> str:
    """What a file is in place of the data, where its first bytes tell."""
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    known = {b"version https://git-lfs": "a pointer of Git LFS, whose data `git lfs pull` fetches", b"<": "a web page"}
    known |= {b"pk": "a .zip or .npz archive, whose arrays belong into an HDF5 file"}
    return next((said for first, said in known.items() if start.startswith(first)), "" if start else "it is empty")
