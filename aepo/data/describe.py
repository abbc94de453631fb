"""What `aepo data show` prints of a dataset, and what is odd about one."""

from __future__ import annotations

import numpy as np
import torch

from aepo.data import datasets, storage
from aepo.data.datasets import Dataset
from aepo.data.tasks import Task

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
CONSTANT = 1e-6
AT_BOUND = 0.999


def summary(task: Task, profile: str) -> str:
    """One line: task, dataset, transitions, episodes, mean return; loads the data."""
    data = datasets.load(task, profile)
    returns = datasets.recorded_returns(data, task.horizon, task.continuing, task.recorded_return)
    mean = f", mean return {returns.mean():.4g}" if len(returns) else ""
    return f"{task.name}: {data.dataset_id}, {len(data):,} transitions in {data.episode[-1] + 1:,} episodes{mean}"


def description(task: Task, profile: str) -> list[str]:
    """Sizes, episodes, returns, spaces, content hash, scores and what is odd, a line each; StudyError as `load`."""
    data = datasets.load(task, profile)
    folder = storage.root() / data.dataset_id
    sizes = {path: path.stat().st_size / 1e6 for path in folder.rglob("*") if path.is_file()}
    cached = sum(size for path, size in sizes.items() if path.suffix == ".safetensors")
    lengths, ended, cut = torch.bincount(data.episode), int(data.terminated.sum()), int(data.truncated.sum())
    parts = f" ({', '.join(task.observation_keys)})" if task.observation_keys else ""
    bounds = [dict.fromkeys(f"{v:g}" for v in bound.tolist()) for bound in (data.action_low, data.action_high)]
    rows = [
        ("task", f"{task.name} (suite {task.suite}), environment {task.env_id or 'none: train-only'}"),
        ("dataset", f"{data.dataset_id}, source {task.source}, in {folder}"),
        ("on disk", f"{sum(sizes.values()) - cached:.1f} MB, cache {cached:.1f} MB"),
        ("transitions", f"{len(data):,}, {ended:,} terminated, {cut:,} truncated"),
        ("episodes", f"{len(lengths):,} of {int(lengths.min())} to {int(lengths.max())} steps"),
        ("returns", _returns(data, task)),
        ("rewards", f"{data.reward.min():.4g} to {data.reward.max():.4g}, mean {data.reward.mean():.4g}"),
        ("state", f"{data.state.shape[1]} numbers, {data.state.min():.4g} to {data.state.max():.4g}{parts}"),
        ("action", f"{data.action.shape[1]} numbers, {' to '.join(map(', '.join, bounds))}"),
        ("content hash", data.content_hash),
        ("scores", _scores(data, task)),
    ]
    rows += [("warning", text) for text in dict.fromkeys([*data.warnings, *oddities(data)])]
    rows += [("note", task.note)] if task.note else []
    return [f"{name:13} {text}" for name, text in rows]


def oddities(data: Dataset) -> list[str]:
    """Sentences on constant observations, saturated or constant actions, equal rewards, short and unended episodes."""
    spread = data.state.amax(0) - data.state.amin(0)
    constant = torch.nonzero(spread <= CONSTANT * data.state.abs().amax(0).clamp(min=1)).flatten().tolist()
    still = (data.action.amax(0) - data.action.amin(0) <= CONSTANT).nonzero().flatten().tolist()
    share = (data.action.abs() >= AT_BOUND).float().mean().item()
    length = torch.bincount(data.episode)
    short = int((length == 1).sum())
    ends = torch.cat([data.episode[1:] != data.episode[:-1], torch.tensor([True])])
    inside = int(data.terminated[~ends].sum())
    said = {
        f"{len(constant)} of {len(spread)} observation dimensions never change ({_shown(constant)}): the networks have not "
        "seen them vary, and an environment in which they do is another one": constant,
        f"action dimensions {_shown(still)} never change: nothing says what they do": still,
        f"{100 * share:.0f}% of the actions' components are at a bound of the box: the behavior pushes as hard as it can, "
        "and its density has mass on the box's faces": share > 0.05,
        f"all {len(data)} rewards are {data.reward[0].item():g}: nothing can be learned from them": (
            data.reward == data.reward[0]
        ).all(),
        f"{short} of {len(length)} episodes have one step": short,
        f"{inside} steps terminate inside an episode: what follows them is another episode's": inside,
        "some episodes neither terminate nor are truncated: they were broken off, and count as truncated": not (
            (data.terminated + data.truncated)[ends].all()
        ),
    }
    return [sentence for sentence, holds in said.items() if holds]


def _shown(numbers: list[int]) -> str:
    """The first eight."""
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _returns(data: Dataset, task: Task) -> str:
    returns = datasets.recorded_returns(data, task.horizon, task.continuing, task.recorded_return)
    if not len(returns):
        return f"no window of {task.horizon} steps fits"
    values = np.quantile(returns, QUANTILES)
    shown = ", ".join(f"{100 * q:.0f}% {value:.4g}" for q, value in zip(QUANTILES, values, strict=True))
    return f"{shown} (quantiles of {len(returns):,} {'windows' if task.continuing else 'episodes'})"


def _scores(data: Dataset, task: Task) -> str:
    if data.reference_scores is None or task.env_id is None:
        return f"none ({task.scores})" if data.reference_scores is None else "none: train-only"
    return f"0 at {data.reference_scores[0]:.6g}, 100 at {data.reference_scores[1]:.6g}: {task.scores}"
