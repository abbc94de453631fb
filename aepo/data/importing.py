"""D4RL's HDF5 files as Minari datasets with the same transitions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import gymnasium as gym
import numpy as np
from minari.data_collector.episode_buffer import EpisodeBuffer

from aepo import environments
from aepo.data import cache, reading, storage
from aepo.data.tasks import Task
from aepo.files import StudyError
from aepo.progress import Progress

NEEDED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


def import_hdf5(path: str | os.PathLike, task: Task, dataset_id: str, clip: bool = False) -> str:
    """Make a Minari dataset of a D4RL file; returns its id. One that exists is kept. `clip` moves actions into the box.

    Without `timeouts` (v0 files) episodes are cut at the task's horizon. With `next_observations` an episode is also cut
    where the next observation is not that of the following row. Without them the last step before a timeout has none and
    is dropped, as D4RL's qlearning_dataset does; a step that terminates is kept, its own observation stands in for it.
    """
    path = Path(path)
    with storage.claim(dataset_id) as staging:
        if staging is None:
            print(f"dataset {dataset_id} is there already and is kept: delete its folder to import it again")
            return dataset_id
        arrays = checked_arrays(path)
        observations, actions = arrays["observations"], arrays["actions"]
        sizes = observations.shape[1], actions.shape[1]
        box = reading.environment_box(task, sizes, str(path)) or gym.spaces.Box(-1.0, 1.0, sizes[1:], np.float32)
        if clip:
            np.clip(actions, box.low, box.high, out=actions)
        elif outside := reading.outside_box(actions, box):
            raise StudyError(f"{path}: {outside}: import it with --clip to move them into the box")
        first, last = segments(arrays, task.horizon)
        more = int((~(arrays["terminals"] | arrays.get("timeouts", True))[last[:-1] - 1]).sum())
        if more and "next_observations" in arrays:
            print(f"{path}: {more} episodes more than its flags tell, cut where the next observation is another's")
        steps = int((last - first).sum())
        storage.reserve(staging, steps, len(first), sizes)
        with Progress("import", steps) as bar:
            cache.create(
                staging,
                dataset_id,
                task,
                _episodes(arrays, first, last, bar),
                task.references or (None, None),
                observation_space=gym.spaces.Box(-np.inf, np.inf, sizes[:1], observations.dtype),
                action_space=box,
                algorithm_name="as recorded by D4RL",
                author="D4RL",
                description=f"{steps} of the {len(observations)} transitions of {path.name}, imported by the AEPO study.",
            )
    return dataset_id


def checked_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a D4RL file, checked: `observations (N, n), actions (N, d), rewards (N,)`, flags as bool `(N,)`."""
    with reading.open_hdf5(path) as file:
        missing = [key for key in NEEDED if key not in file]
        if missing:
            raise StudyError(f"{path} has no {', '.join(map(repr, missing))}: it must hold {', '.join(NEEDED)}")
        try:
            arrays = {key: file[key][()] for key in (*NEEDED, *OPTIONAL) if key in file}
        except OSError as error:
            raise StudyError(f"{path} is damaged ({storage.reason(error)}): get it again") from None
    if len({len(array) for array in arrays.values()}) > 1:
        shown = ", ".join(f"{key} {len(array)}" for key, array in arrays.items())
        raise StudyError(f"{path}: its arrays differ in length ({shown}), so it is damaged or of another kind")
    if not len(arrays["rewards"]):
        raise StudyError(f"{path} is empty: it holds no episode")
    for key in ("observations", "next_observations", "actions"):
        if key in arrays:
            environments.check_vectors(arrays[key].shape[1:], arrays[key].dtype, key.removeprefix("next_"), str(path))
    reading.check_finite(arrays, str(path))
    flags = {key: arrays[key].reshape(-1).astype(bool) for key in ("terminals", "timeouts") if key in arrays}
    return arrays | flags | {"rewards": arrays["rewards"].reshape(-1)}


def segments(arrays: Mapping[str, np.ndarray], horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """First row and the row after the last, of each episode's transitions `(E,)`, `(E,)`."""
    terminal, rows = arrays["terminals"], np.arange(len(arrays["terminals"]))
    start = np.maximum.accumulate(np.where(np.roll(terminal, 1) | (rows == 0), rows, 0))
    timeout = arrays.get("timeouts", (rows - start) % horizon == horizon - 1)
    end = terminal | timeout | (rows == rows[-1])
    if "next_observations" in arrays:
        end[:-1] |= (arrays["next_observations"][:-1] != arrays["observations"][1:]).any(1)
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
