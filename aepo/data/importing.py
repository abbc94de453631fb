"""HDF5 files of D4RL, d3rlpy, OGBench or Minari as Minari datasets with the same transitions."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo import environments
from aepo.data import cache, reading, storage
from aepo.data.tasks import D4RL, Task
from aepo.files import StudyError
from aepo.progress import Progress

NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
VECTORS = ("observations", "next_observations", "actions")
DIALECTS = ("episode_terminals", "masks", "valids")  # d3rlpy's ends of episodes; OGBench's flags
UNREAD = ("infos", "metadata", "qpos", "qvel", "button_states")  # known to say nothing that is needed
RECORD = "aepo_import"  # what an imported dataset's metadata say of its file
ROUNDING = 4  # in units of the last place of an array's largest number


def import_hdf5(path: str | os.PathLike, task: Task, dataset_id: str, clip: bool = False) -> str:
    """Make a Minari dataset of an HDF5 file; returns its id. One of this file is kept. `clip` moves actions into the box.

    Without `timeouts` (v0 files) episodes are cut at the task's horizon. With `next_observations` an episode is also cut
    where the next observation is not that of the following row. Without them the last step before a timeout has none and
    is dropped, as D4RL's qlearning_dataset does; a step that terminates is kept, its own observation stands in for it.
    """
    path = Path(path)
    if task.source != D4RL or (task.file and path.resolve() != Path(task.file)):
        remedy = f"run `aepo data {'collect' if task.recipe else 'get'} {task.argument}`"
        own = "name it as the dataset of a task file of your own"
        raise StudyError(f"from {path} the data of {task.name} are not imported: {remedy}, or {own}")
    reading.open_hdf5(path).close()
    record = {"file": path.name, "sha256": storage.sha256(path), "clip": clip}
    with storage.claim(dataset_id) as staging:
        if staging is None:
            _check_same(dataset_id, record)
            print(f"dataset {dataset_id} is there already and is kept: it was imported from this file")
            return dataset_id
        arrays = checked_arrays(path, task)
        observations, actions = arrays["observations"], arrays["actions"]
        sizes = observations.shape[1], actions.shape[1]
        box = reading.environment_box(task, sizes, str(path)) or gym.spaces.Box(-1.0, 1.0, sizes[1:], np.float32)
        first, last = segments(arrays, task.horizon)
        steps = int((last - first).sum())
        said = [*_kept(arrays, first, last, task.horizon), *reading.check_numbers(arrays, str(path))]
        if not steps:
            raise StudyError(f"{path}: {said[0]}, so nothing is left: correct its flags, or add next_observations")
        call = f"get {task.argument}" if task.file else f"import {shlex.quote(str(path))} --task {task.argument}"
        said += reading.into_box(actions, box, clip, str(path), call)
        storage.reserve(staging, steps, len(first), sizes)
        with Progress("import", steps) as bar:
            cache.create(
                staging,
                dataset_id,
                task,
                _episodes(arrays, first, last, bar),
                task.references or (None, None),
                record={RECORD: record | {"said": said}},
                observation_space=gym.spaces.Box(-np.inf, np.inf, sizes[:1], observations.dtype),
                action_space=box,
                algorithm_name="as recorded by D4RL",
                author="D4RL",
                description=f"{steps} of the {len(observations)} transitions of {path.name}, imported by the AEPO study.",
            )
        print(*(f"{path}: {sentence}" for sentence in said), sep="\n")
    return dataset_id


def _check_same(dataset_id: str, record: Mapping[str, Any]) -> None:
    """StudyError where the dataset on disk was imported from another file, or clipped otherwise."""
    folder = storage.root() / dataset_id
    there = reading.metadata(folder, dataset_id).get(RECORD) or {}
    origin = f"from another file ({there.get('file', 'which, it does not say')})"
    if there.get("sha256") == record["sha256"]:
        origin = f"{'with' if there['clip'] else 'without'} --clip"
    if any(there.get(key) != record[key] for key in ("sha256", "clip")):
        raise StudyError(f"dataset {dataset_id} is there already, imported {origin}: delete the folder {folder} first")


def checked_arrays(path: Path, task: Task) -> dict[str, np.ndarray]:
    """The arrays of a file as D4RL has them, checked: vectors `(N, .)`, rewards `(N,)`, flags as bool `(N,)`."""
    known = (*NEEDED, *OPTIONAL, *DIALECTS)
    try:
        with reading.open_hdf5(path) as file:
            names, unknown = list(file), []
            if missing := [key for key in NEEDED if key not in names and "episode_0" not in names]:
                holds = f"it must hold {', '.join(NEEDED)}, and holds {', '.join(names[:12]) or 'nothing'}"
                raise StudyError(f"{path} has no {', '.join(map(repr, missing))}: {holds}")
            if "episode_0" not in names:
                arrays = {key: reading.numbers(file, key) for key in known if key in names}
                others, rows = {*names} - {*known, *UNREAD}, arrays["rewards"].shape[:1]
                unknown = [key for key in sorted(others) if (getattr(file.get(key), "shape", rows) or ())[:1] == rows]
        if "episode_0" in names:
            arrays = _joined(path, sum(key.startswith("episode_") for key in names), task)
        lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if len({*lengths.values()}) > 1:
            shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise ValueError(f"its arrays differ in length ({shown}), so it is damaged or of another kind")
        if unknown:
            remedy = "move it into the group infos, which is not read, if it says nothing of where episodes end"
            raise StudyError(f"{path} holds {', '.join(map(repr, unknown))}, which is not understood: {remedy}")
        if not lengths["rewards"]:
            raise StudyError(f"{path} is empty: it holds no episode")
        for key, array in arrays.items():
            kind = key.removeprefix("next_")
            if key in VECTORS:
                environments.check_vectors(array.shape[1:], array.dtype, kind, str(path))
            if array.shape[1:] != (arrays[kind].shape[1:] if key in VECTORS else array.shape[1:] and (1,)):
                remedy = f"have it agree with {kind}, or leave it out" if key in VECTORS else "leave one number a row"
                raise ValueError(f"{key} has the shape {array.shape}: {remedy}")
        scalars = {key: array.reshape(-1) for key, array in arrays.items() if key not in VECTORS}
        flags = {key: reading.flags(array, key) for key, array in scalars.items() if key != "rewards"}
        vectors = {key: arrays[key] for key in VECTORS if key in arrays}
        return vectors | {"rewards": scalars["rewards"]} | _ends(flags)
    except OSError:
        raise StudyError(f"{path} is damaged: {reading.WHOLE}") from None
    except ValueError as error:
        raise StudyError(f"{path}: {error}") from None


def _ends(flags: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`terminals` and `timeouts` as D4RL means them: of d3rlpy's `episode_terminals`, or of OGBench's `masks`, `valids`.

    OGBench's terminals end a trajectory, its masks are 0 where a step terminates; a row whose valids is 0 is a last state.
    """
    terminal, last = flags["terminals"], ~flags.get("valids", ~flags["terminals"])
    if "masks" in flags:
        if (wrong := last & ~terminal).any():
            row = f"valids is 0 in row {np.argmax(wrong)}, which ends no trajectory"
            raise ValueError(f"{row}: leave out such rows and valids")
        terminal, end = ~flags["masks"], last
    elif "valids" in flags:
        problem = "it has valids and no masks, so nothing says which steps terminate"
        raise ValueError(f"{problem}: add masks, 0 where one does")
    elif "episode_terminals" in flags:
        end = flags["episode_terminals"] | flags.get("timeouts", False)
    else:
        return flags
    return {"terminals": terminal, "timeouts": end & ~terminal}


def _joined(path: Path, count: int, task: Task) -> dict[str, np.ndarray]:
    """The episodes of Minari's own file below each other."""
    parts: dict[str, list] = {key: [] for key in (*NEEDED, *OPTIONAL)}
    for episode in reading.episodes_of(path, count, task, str(path), reading.WHOLE):
        seen, terminal = episode["observations"], episode["terminations"]
        cut = episode["truncations"] | (np.arange(len(terminal)) == len(terminal) - 1) & ~terminal
        rows = (seen[:-1], episode["actions"], episode["rewards"], terminal, cut, seen[1:])
        for array, below in zip(rows, parts.values(), strict=True):
            below.append(array)
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}


def _kept(arrays: Mapping[str, np.ndarray], first: np.ndarray, last: np.ndarray, horizon: int) -> list[str]:
    """How many rows were kept, and why not all; how the episodes were found where the flags do not say."""
    rows, steps = len(arrays["rewards"]), int((last - first).sum())
    said = [f"{steps:,} of {rows:,} rows kept, in {len(first):,} episodes"]
    if steps < rows:
        said[0] += f": {rows - steps:,} rows end an episode that does not terminate, and have no next observation"
    if "next_observations" in arrays:
        more = int((~(arrays["terminals"] | arrays.get("timeouts", True))[last[:-1] - 1]).sum())
        said += [f"{more} episodes more than its flags tell, cut where the next observation is another's"] * (more > 0)
    elif "timeouts" not in arrays:
        said.append(f"it has no timeouts: episodes are cut at the horizon, {horizon} steps")
    return said


def segments(arrays: Mapping[str, np.ndarray], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """First row and the row after the last, of each episode's transitions `(E,)`, `(E,)`."""
    terminal, rows = arrays["terminals"], np.arange(len(arrays["terminals"]))
    start = np.maximum.accumulate(np.where(np.roll(terminal, 1) | (rows == 0), rows, 0))
    timeout = arrays.get("timeouts", (rows - start) % horizon == horizon - 1)
    end = terminal | timeout | (rows == rows[-1])
    if "next_observations" in arrays:
        after, observations = arrays["next_observations"][:-1], arrays["observations"]
        coarse = max((np.finfo(a.dtype).eps for a in (after, observations) if a.dtype.kind == "f"), default=0)
        rounding = ROUNDING * max(coarse, np.finfo(np.float32).eps) * np.abs(observations).max(0)
        end[:-1] |= (np.abs(after - observations[1:]) > rounding).any(1)
    last = np.flatnonzero(end)
    first = np.concatenate([[0], last[:-1] + 1])
    after = last + (1 if "next_observations" in arrays else terminal[last])
    return first[after > first], after[after > first]


def _episodes(arrays: Mapping[str, np.ndarray], first, last, bar: Progress) -> Iterator[EpisodeBuffer]:
    observations, terminal, final = arrays["observations"], arrays["terminals"], arrays.get("next_observations")
    for i, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        after = final[b - 1] if final is not None else observations[b - 1 if terminal[b - 1] else b]
        truncated = (np.arange(b - a) == b - a - 1) & ~terminal[a:b]
        yield EpisodeBuffer(
            id=i,
            observations=np.concatenate([observations[a:b], after[None]]),
            actions=arrays["actions"][a:b],
            rewards=arrays["rewards"][a:b],
            terminations=terminal[a:b],
            truncations=truncated | arrays["timeouts"][a:b] if "timeouts" in arrays else truncated,
        )
        bar.update(b - a)
