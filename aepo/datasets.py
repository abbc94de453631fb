"""A task's transitions as tensors: made where they are missing, read through Minari, checked, scaled."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import minari
import numpy as np
import torch
from minari.storage.datasets_root_dir import get_dataset_path
from torch import Tensor

from aepo import collect, runs
from aepo.settings import DataSettings
from aepo.tasks import Task


@dataclass(frozen=True)
class Dataset:
    """N transitions; states raw, actions scaled to [-1, 1]. `episode` tells which recorded segment a row is from.

    state, next_state `(N, n)`, action `(N, d)`, reward, terminated, truncated, episode `(N,)`;
    state_mean, state_std `(n,)`; action_low, action_high `(d,)` of the environment's box.
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
    reference_scores: tuple[float, float]

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


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """Let Minari write into a temporary folder beside its own, so that a broken-off dataset is never seen."""
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=root))
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(staging)
    try:
        yield staging
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before
        shutil.rmtree(staging, ignore_errors=True)


def _complete(path: Path) -> bool:
    return (path / "data" / "metadata.json").exists()


def prepare(task: Task, profile: str, data: DataSettings, progress: bool = True) -> str:
    """Make the task's Minari dataset where it is not on disk yet; returns its id. A second process waits for the first."""
    dataset_id = task.dataset_ids[profile]
    root = Path(get_dataset_path())
    path = root / dataset_id
    try:
        root.mkdir(parents=True, exist_ok=True)
        with runs.lock(root, dataset_id.replace("/", "-")):
            if not _complete(path):
                _create(task, dataset_id, data, root, progress)
    except OSError as error:
        raise runs.StudyError(
            f"cannot write the dataset {dataset_id} to {root} ({error.strerror or error}): "
            "free space or set MINARI_DATASETS_PATH to a writable folder"
        ) from error
    return dataset_id


def _create(task: Task, dataset_id: str, data: DataSettings, root: Path, progress: bool) -> None:
    episodes = collect.RECIPES[task.recipe](task, data.steps, data.seed, progress)
    env, eval_env = collect.environment_specs(task)
    random_return, expert_return, origin = collect.reference_scores(task, data.seed)
    with _staging(root) as staging, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is set to None", module="minari")
        minari.create_dataset_from_buffers(
            dataset_id,
            buffer=episodes,
            env=env,
            eval_env=eval_env,
            algorithm_name=f"{collect.describe(task)}, seed {data.seed}",
            author="AEPO study contributors",
            ref_min_score=random_return,
            ref_max_score=expert_return,
            description=f"{data.steps} steps, collected by the AEPO study. Scores: {origin}.",
            requirements=[
                f"{name}=={version}"
                for name, version in runs.versions().items()
                if name in ("mujoco", "gymnasium-robotics")
            ],
        )
        target = root / dataset_id
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staging / dataset_id, target)


@functools.lru_cache(maxsize=2)
def load(dataset_id: str) -> Dataset:
    """Read a Minari dataset into float32 tensors on the CPU; no transition spans two episodes."""
    try:
        stored = minari.load_dataset(dataset_id)
    except (FileNotFoundError, ValueError) as error:
        raise runs.StudyError(f"dataset {dataset_id} is not on disk ({error}): run notebook 03_dataset first") from None
    parts: dict[str, list[np.ndarray]] = {key: [] for key in ("s", "a", "r", "n", "te", "tr", "e")}
    for i, episode in enumerate(stored.iterate_episodes()):
        observations = np.asarray(episode.observations, dtype=np.float32)
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
    low, high = stored.action_space.low, stored.action_space.high
    scale = lambda action: 2 * (action - low) / (high - low) - 1  # noqa: E731
    metadata = stored.storage.metadata
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
        reference_scores=(float(metadata["ref_min_score"]), float(metadata["ref_max_score"])),
    )


def record(folder: Path, data: Dataset) -> None:
    """Write what the data are into the manifest of a run folder."""
    entry = {
        "content_hash": data.content_hash,
        "transitions": len(data),
        "episodes": int(data.episode.max()) + 1,
        "reference_scores": list(data.reference_scores),
    }
    runs.update_manifest(folder, "data", data.dataset_id, entry)


def recorded_returns(data: Dataset, horizon: int, continuing: bool) -> np.ndarray:
    """Returns of the recorded behavior: of whole windows of `horizon` steps where one walk was cut into segments
    (`continuing`), else of the recorded episodes."""
    reward = data.reward.double().cpu()
    if continuing:
        windows = len(reward) // horizon
        return reward[: windows * horizon].view(windows, horizon).sum(1).numpy()
    return (
        torch.zeros(int(data.episode.max()) + 1, dtype=torch.float64).index_add_(0, data.episode.cpu(), reward).numpy()
    )
