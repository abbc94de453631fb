"""A task's transitions as tensors: made where they are missing, read through Minari, checked, scaled."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import minari
import numpy as np
import torch
from torch import Tensor

from aepo import collect, runs, stored
from aepo.settings import DataSettings
from aepo.tasks import D4RL, MINARI, Task


@dataclass(frozen=True)
class Dataset:
    """N transitions; states raw, actions scaled to [-1, 1]. `episode` tells which recorded segment a row is from.

    state, next_state `(N, n)`, action `(N, d)`, reward, terminated, truncated, episode `(N,)`;
    state_mean, state_std `(n,)`; action_low, action_high `(d,)` of the environment's box. `reference_scores`: returns of
    score 0 and 100, the task's own where it has some, else those stored with the data, else None.
    """

    dataset_id: str
    content_hash: str
    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    terminated: Tensor
    truncated: Tensor
    episode: Tensor
    state_mean: Tensor
    state_std: Tensor
    action_low: Tensor
    action_high: Tensor
    reference_scores: tuple[float, float] | None

    def __len__(self) -> int:
        return len(self.reward)

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Dataset:
        """The same data on a device, floating-point tensors in `dtype`."""
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def standardize(self, state: Tensor) -> Tensor:
        """(state - mean) / std."""
        return (state - self.state_mean) / self.state_std


def prepare(task: Task, profile: str, data: DataSettings, progress: bool = True) -> str:
    """Download, or collect, the task's Minari dataset where it is not on disk yet; returns its id.

    A second process waits for the first. StudyError where it cannot be had, with the next step.
    """
    dataset_id = task.dataset_ids[profile]
    if not stored.complete(dataset_id) and task.source == D4RL:
        raise runs.StudyError(
            f"dataset {dataset_id} is not on disk, and D4RL's files are not downloaded by the study: "
            f"fetch the HDF5 file yourself, then run `aepo data import FILE --task {task.name}`"
        )
    with stored.claim(dataset_id) as staging:
        if staging is not None and task.source == MINARI:
            minari.download_dataset(dataset_id)
        elif staging is not None:
            _collect(task, dataset_id, data, progress)
    return dataset_id


def _collect(task: Task, dataset_id: str, data: DataSettings, progress: bool) -> None:
    """Run the task's recipe and write what it recorded as a Minari dataset."""
    episodes = collect.RECIPES[task.recipe](task, data.steps, data.seed, progress)
    env, eval_env = collect.environment_specs(task)
    low, high, origin = collect.reference_scores(task, data.seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is set to None", module="minari")
        minari.create_dataset_from_buffers(
            dataset_id,
            buffer=episodes,
            env=env,
            eval_env=eval_env,
            algorithm_name=f"{collect.describe(task)}, seed {data.seed}",
            author="AEPO study contributors",
            ref_min_score=low,
            ref_max_score=high,
            description=f"{data.steps} steps, collected by the AEPO study. Scores: {origin}.",
            requirements=stored.requirements(),
        )


def load(task: Task, profile: str) -> Dataset:
    """The task's dataset of a profile as float32 tensors on the CPU; no transition spans two episodes."""
    data = _load(task.dataset_ids[profile], task.observation_keys, str(stored.root()))
    return data if task.references is None else replace(data, reference_scores=task.references)


@functools.lru_cache(maxsize=2)
def _load(dataset_id: str, observation_keys: tuple[str, ...], root: str) -> Dataset:
    try:
        opened = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise runs.StudyError(f"dataset {dataset_id} is not on disk ({error}): run notebook 03_dataset first") from None
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("s", "a", "r", "n", "te", "tr", "e")}
    for i, episode in enumerate(opened.iterate_episodes()):
        observations = flatten(episode.observations, observation_keys, dataset_id).astype(np.float32)
        parts["s"].append(observations[:-1])
        parts["n"].append(observations[1:])
        parts["a"].append(np.asarray(episode.actions, dtype=np.float32))
        parts["r"].append(np.asarray(episode.rewards, dtype=np.float32))
        parts["te"].append(np.asarray(episode.terminations, dtype=np.float32))
        parts["tr"].append(np.asarray(episode.truncations, dtype=np.float32))
        parts["e"].append(np.full(len(episode.rewards), i, dtype=np.int64))
    arrays = {key: np.concatenate(value) for key, value in parts.items()}
    bad = [key for key, value in arrays.items() if not np.isfinite(value).all()]
    if bad:
        raise runs.StudyError(f"dataset {dataset_id} holds NaN or infinity: delete it and make it again")
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(arrays[key].tobytes())
    low, high = opened.action_space.low, opened.action_space.high
    scale = lambda action: 2 * (action - low) / (high - low) - 1  # noqa: E731
    return Dataset(
        dataset_id=dataset_id,
        content_hash=digest.hexdigest()[:16],
        state=torch.from_numpy(arrays["s"]),
        action=torch.from_numpy(scale(arrays["a"]).astype(np.float32)).clamp(-1, 1),
        reward=torch.from_numpy(arrays["r"]),
        next_state=torch.from_numpy(arrays["n"]),
        terminated=torch.from_numpy(arrays["te"]),
        truncated=torch.from_numpy(arrays["tr"]),
        episode=torch.from_numpy(arrays["e"]),
        state_mean=torch.from_numpy(arrays["s"].mean(0)),
        state_std=torch.from_numpy(arrays["s"].std(0)).clamp(min=1e-3),
        action_low=torch.as_tensor(low, dtype=torch.float32),
        action_high=torch.as_tensor(high, dtype=torch.float32),
        reference_scores=stored.references(opened.storage.metadata),
    )


def flatten(observations: np.ndarray | Mapping, keys: tuple[str, ...], name: str) -> np.ndarray:
    """Observations `(T, n)`: an array as it is, the named parts of a dict side by side in that order."""
    if isinstance(observations, Mapping):
        missing = [key for key in keys if key not in observations]
        if missing or not keys:
            raise runs.StudyError(
                f"dataset {name} has observations with the parts {', '.join(sorted(observations))}, "
                f"the task takes {', '.join(keys) or 'plain arrays'}: correct the task's observation_keys"
            )
        parts = [np.asarray(observations[key]) for key in keys]
    else:
        parts = [np.asarray(observations)]
    if any(part.ndim != 2 for part in parts):
        raise runs.StudyError(
            f"dataset {name} has observations of shape {tuple(parts[0].shape[1:])} a step: only vectors can be used"
        )
    return np.concatenate(parts, 1)


def record(folder: Path, data: Dataset) -> None:
    """Write what the data are into the manifest of a run folder."""
    entry = {
        "content_hash": data.content_hash,
        "transitions": len(data),
        "episodes": int(data.episode.max()) + 1,
        "reference_scores": None if data.reference_scores is None else list(data.reference_scores),
    }
    runs.update_manifest(folder, "data", data.dataset_id, entry)


def recorded_returns(data: Dataset, horizon: int, continuing: bool, how: str = "sum") -> np.ndarray:
    """Returns of the recorded behavior: of whole windows of `horizon` steps where one walk was cut into segments
    (`continuing`), else of the recorded episodes. `how`: the "sum" of the rewards, or their "max" where a reward
    counts what is achieved so far."""
    reward = data.reward.double().cpu()
    if continuing:
        windows = len(reward) // horizon
        return reward[: windows * horizon].view(windows, horizon).sum(1).numpy()
    episodes = torch.zeros(int(data.episode.max()) + 1, dtype=torch.float64)
    reduce = {"sum": "sum", "max": "amax"}[how]
    return episodes.scatter_reduce_(0, data.episode.cpu(), reward, reduce, include_self=how == "sum").numpy()
