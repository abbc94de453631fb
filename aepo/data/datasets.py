"""A task's transitions as tensors: made where they are missing, read through Minari, checked, scaled."""

import shutil
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aepo import files
from aepo.data import cache, collect, download, importing, reading, storage
from aepo.data.tasks import D4RL, LOCAL, MINARI, Task, in_order
from aepo.settings import DataSettings


@dataclass(frozen=True)
class Dataset:
    """N transitions; states raw, actions scaled to [-1, 1]."""

    dataset_id: str
    content_hash: str
    state: Tensor  # (N, n), as next_state
    action: Tensor  # (N, d)
    reward: Tensor  # (N,), as what follows
    next_state: Tensor
    terminated: Tensor
    truncated: Tensor
    episode: Tensor  # which recorded segment a row is from
    state_mean: Tensor
    state_std: Tensor
    action_low: Tensor  # (d,), as action_high: the environment's box
    action_high: Tensor
    # returns of score 0 and 100: the task's, those stored with the data, or the means of the worst and best 5% of episodes
    reference_scores: tuple[float, float] | None
    warnings: tuple[str, ...] = ()  # what is odd about the data, a sentence each

    def __len__(self) -> int:
        return len(self.reward)

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Self:
        """The same data on a device, floating-point tensors in `dtype`."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {key: x.to(device, dtype if x.is_floating_point() else None) for key, x in tensors.items()}
        return replace(self, **moved)

    def standardize(self, state: Tensor) -> Tensor:
        """(state - mean) / std."""
        return (state - self.state_mean) / self.state_std


def prepare(task: Task, profile: str, data: DataSettings, clip: bool = False) -> str:
    """Download, import or collect the task's dataset where it is not on disk; its id. `clip` moves actions into the box."""
    dataset_id = task.dataset_ids[profile]
    if not storage.complete(dataset_id):
        if task.file:
            return importing.import_hdf5(task.file, task, dataset_id, clip)
        if task.source == D4RL:
            problem = f"dataset {dataset_id} is not on disk, and D4RL's files are not downloaded by the study"
            remedy = f"fetch the HDF5 file yourself, then run {command(task, profile)}{download.instead(task)}"
            raise files.StudyError(f"{problem}: {remedy}")
        if task.source == MINARI:
            download.download_dataset(task, dataset_id)
        else:
            collect.collect_dataset(task, dataset_id, data)
    shutil.rmtree(storage.root() / f".staging-{dataset_id.replace('/', '-')}", ignore_errors=True)  # a killed one's
    if clip:
        storage.ask_to_clip(dataset_id)
    return dataset_id


def command(task: Task, profile: str) -> str:
    """The command that puts the task's dataset on disk."""
    if task.source == D4RL and not task.file:
        return f"`aepo data import FILE --task {task.argument}`"
    return f"`aepo data {'collect' if task.source == LOCAL else 'get'} {task.argument} --profile {profile}`"


def load(task: Task, profile: str) -> Dataset:
    """The task's dataset as float32 tensors on the CPU, memory-mapped from the cache that the first load makes."""
    folder = storage.root() / (dataset_id := task.dataset_ids[profile])
    if not storage.complete(dataset_id):
        remedy = f"run notebook 03_dataset first, or {command(task, profile)}"
        raise files.StudyError(f"dataset {dataset_id} is not on disk: {remedy}")
    metadata = reading.metadata(folder, dataset_id)
    stored: Any = (metadata.get("ref_min_score"), metadata.get("ref_max_score"))
    references = task.references or (None if None in stored else stored)
    if references and not in_order(*references):
        problem = f"{folder}/data/metadata.json has the reference scores {stored}, which are not low before high"
        remedy = "correct them, or write `references: [low, high]` into a task file of your own"
        raise files.StudyError(f"{problem}: {remedy}")
    with files.memory(f"dataset {dataset_id}", "use a machine with more memory"):
        tensors, made = cache.load_or_build(folder, dataset_id, task)
    told: dict[str, Any] = {"content_hash": made["content_hash"], "warnings": tuple(made["warnings"])}
    data = Dataset(dataset_id, reference_scores=references, **told | tensors)
    if references is None and task.env_id:
        ordered = np.sort(recorded_returns(data, task.horizon, task.continuing, task.recorded_return))
        share = max(1, len(ordered) // 20)
        ends = ordered[:share].mean().item(), ordered[-share:].mean().item()
        return replace(data, reference_scores=ends if in_order(*ends) else None)
    return data


def recorded_returns(data: Dataset, horizon: int, continuing: bool, how: str = "sum") -> np.ndarray:
    """Returns of the recorded episodes' first `horizon` steps, as evaluated; of whole windows of one walk (`continuing`).

    `how`: the "sum" of the rewards, or their "max" where a reward counts what is achieved so far.
    """
    reward = data.reward.double().cpu().numpy()
    if continuing:
        return reward[: len(reward) // horizon * horizon].reshape(-1, horizon).sum(1)
    episode = data.episode.cpu().numpy()
    played = pd.Series(reward).groupby(episode).head(horizon)
    return getattr(played.groupby(episode[played.index]), how)().to_numpy()


def collected_next(data: Dataset, discount: float, along: bool = False) -> Tensor:
    """Discounted reward `(N,)` that the recorded behavior collected from each step to a termination or its episode's end.

    `along`: on through the episodes that follow one that was cut off, where these are segments of one walk.
    """
    total, running, after = [], 0.0, None
    columns = (reversed(column.tolist()) for column in (data.episode, data.reward, data.terminated))
    for episode, reward, terminated in zip(*columns, strict=True):
        running = reward + discount * (running if (along or episode == after) and not terminated else 0.0)
        after = episode
        total.append(running)
    return torch.tensor(total[::-1])


def return_floor(data: Dataset, discount: float) -> Tensor:
    """A lower bound of Q(s, a) `(N,)` where dynamics are deterministic: what the recorded behavior collected from there.

    -inf where an episode was cut off so soon after that what is missing could matter: negative rewards, and less than 98%
    of the discount's weight seen.
    """
    last = (torch.bincount(data.episode).cumsum(0) - 1)[data.episode]
    left = last - torch.arange(len(data), device=last.device) + 1
    known = (data.terminated[last] > 0) | (1 - discount ** left.double() > 0.98) | (data.reward >= 0).all()
    return torch.where(known, collected_next(data, discount).to(data.reward), -torch.inf)
