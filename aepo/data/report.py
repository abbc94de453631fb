"""What `aepo data show` prints of a dataset."""

from __future__ import annotations

import numpy as np
import torch

from aepo.data import datasets, oddities, storage
from aepo.data.datasets import Dataset
from aepo.data.tasks import Task

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)


def _megabytes(paths) -> str:
    return f"{sum(path.stat().st_size for path in paths if path.is_file()) / 1e6:.1f} MB"


def summary(task: Task, profile: str) -> str:
    """One line: task, dataset, transitions, episodes, mean return; loads the data."""
    data = datasets.load(task, profile)
    returns = datasets.recorded_returns(data, task.horizon, task.continuing, task.recorded_return)
    mean = f", mean return {returns.mean():.4g}" if len(returns) else ""
    episodes = int(data.episode[-1]) + 1
    return f"{task.name}: {data.dataset_id}, {len(data):,} transitions in {episodes:,} episodes{mean}"


def lines(task: Task, profile: str) -> list[str]:
    """Sizes, episodes, returns, spaces, content hash, scores and what is odd, a line each; StudyError as `load`."""
    data = datasets.load(task, profile)
    folder = storage.root() / data.dataset_id
    lengths = torch.bincount(data.episode)
    ended, cut = int(data.terminated.sum()), int(data.truncated.sum())
    rows = [
        ("task", f"{task.name} (suite {task.suite}), environment {task.env_id or 'none: train-only'}"),
        ("dataset", f"{data.dataset_id}, source {task.source}, in {folder}"),
        (
            "on disk",
            f"{_megabytes((folder / 'data').rglob('*'))}, cache {_megabytes(folder.glob('aepo-*.safetensors'))}",
        ),
        ("transitions", f"{len(data):,}, {ended:,} terminated, {cut:,} truncated"),
        ("episodes", f"{len(lengths):,} of {int(lengths.min())} to {int(lengths.max())} steps"),
        ("returns", _returns(data, task)),
        ("rewards", f"{data.reward.min():.4g} to {data.reward.max():.4g}, mean {data.reward.mean():.4g}"),
        ("state", f"{data.state.shape[1]} numbers, {data.state.min():.4g} to {data.state.max():.4g}{_parts(task)}"),
        ("action", f"{data.action.shape[1]} numbers in {_box(data)}"),
        ("content hash", data.content_hash),
        ("scores", _scores(data, task)),
    ]
    odd = [*data.warnings, *(found for found in oddities.find(data) if not found.startswith("every reward"))]
    rows += [("warning", text) for text in odd]
    rows += [("note", task.note)] if task.note else []
    return [f"{name:13} {text}" for name, text in rows]


def _returns(data: Dataset, task: Task) -> str:
    returns = datasets.recorded_returns(data, task.horizon, task.continuing, task.recorded_return)
    if not len(returns):
        return f"no window of {task.horizon} steps fits"
    values = np.quantile(returns, QUANTILES)
    shown = ", ".join(f"{100 * q:.0f}% {value:.4g}" for q, value in zip(QUANTILES, values, strict=True))
    return f"{shown} (quantiles of {len(returns):,} {'windows' if task.continuing else 'episodes'})"


def _parts(task: Task) -> str:
    return f" ({', '.join(task.observation_keys)})" if task.observation_keys else ""


def _box(data: Dataset) -> str:
    low, high = data.action_low, data.action_high
    if (low == low[0]).all() and (high == high[0]).all():
        return f"[{low[0]:g}, {high[0]:g}]"
    return f"[{', '.join(f'{v:g}' for v in low)}] to [{', '.join(f'{v:g}' for v in high)}]"


def _scores(data: Dataset, task: Task) -> str:
    if data.reference_scores is None or task.env_id is None:
        return f"none ({task.scores})" if data.reference_scores is None else "none: train-only"
    return f"0 at {data.reference_scores[0]:.6g}, 100 at {data.reference_scores[1]:.6g}: {task.scores}"
