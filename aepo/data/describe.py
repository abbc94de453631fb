"""What `aepo data show` prints of a dataset, and what is odd about one."""

import numpy as np
import torch

from aepo.data import datasets, importing, reading, storage
from aepo.data.datasets import Dataset
from aepo.data.tasks import Task

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
CONSTANT = 1e-6
AT_BOUND = 0.999
SMOOTH, JUMP = 0.3, 5.0  # deviations that a smooth dimension changes by at most, usually; times the usual step


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
    scores = f"none ({task.scores})" if data.reference_scores is None else "none: train-only"
    if data.reference_scores and task.env_id:
        scores = f"0 at {data.reference_scores[0]:.6g}, 100 at {data.reference_scores[1]:.6g}: {task.scores}"
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
        ("scores", scores),
    ]
    if record := reading.metadata(folder, data.dataset_id).get(importing.RECORD):
        said = f"from {record['file']}, sha256 {record['sha256'][:8]}: {'; '.join(record['said'])}"
        rows.insert(2, ("imported", said))
    horizon = None if task.continuing else task.horizon
    rows += [("warning", text) for text in oddities(data, horizon)]
    rows += [("note", task.note)] if task.note else []
    return [f"{name:13} {text}" for name, text in rows]


def oddities(data: Dataset, horizon: int | None = None) -> list[str]:
    """The data's warnings; sentences on constant observations, saturated, constant or small actions, odd episodes, jumps."""
    spread = data.state.amax(0) - data.state.amin(0)
    constant = torch.nonzero(spread <= CONSTANT * data.state.abs().amax(0).clamp(min=1)).flatten().tolist()
    low, high = data.action.amin(0), data.action.amax(0)
    still = (high - low <= CONSTANT).nonzero().flatten().tolist()
    share = (data.action.abs() >= AT_BOUND).float().mean().item()
    length = torch.bincount(data.episode)
    short = int((length == 1).sum())
    ends = torch.cat([data.episode[1:] != data.episode[:-1], torch.tensor([True])])
    inside, broken = int(data.terminated[~ends].sum()), not (data.terminated + data.truncated)[ends].all()
    long, jumped, used = int((length > (horizon or len(data))).sum()), jumps(data), (high - low).max().item() / 2
    said = {
        f"{len(constant)} of {len(spread)} observation dimensions never change ({_shown(constant)}): the networks have not "
        "seen them vary, and an environment in which they do is another one": constant,
        f"action dimensions {_shown(still)} never change: nothing says what they do": still,
        f"{100 * share:.0f}% of the actions' components are at a bound of the box: the behavior pushes as hard as it can, "
        "and its density has mass on the box's faces": share > 0.05,
        f"{short} of {len(length)} episodes have one step": short,
        f"{long} of {len(length)} episodes are longer than the evaluation's {horizon} steps: returns are of their first "
        f"{horizon}; where the environment ends there, two may be joined": long,
        f"{len(jumped)} steps jump by more than {JUMP:g} times the usual (first in rows {_shown(jumped)}): episodes may be "
        "joined there": jumped,
        f"the actions use {100 * used:.0f}% of the action box: they may be scaled to another one": 0 < used < 0.5,
        f"{inside} steps terminate inside an episode: what follows them is another episode's": inside,
        "some episodes neither terminate nor are truncated: they were broken off, and count as truncated": broken,
    }
    return [*data.warnings, *(sentence for sentence, holds in said.items() if holds)]


def jumps(data: Dataset) -> list[int]:
    """Rows whose step is far above the usual in most of the dimensions that usually change little: two episodes joined."""
    change = (data.next_state - data.state).abs() / data.state_std
    usual = np.quantile(change[:: max(1, len(change) // 20_000)].numpy(), 0.9, axis=0)
    smooth = np.flatnonzero((usual > CONSTANT) & (usual < SMOOTH))
    ratio = change[:, smooth] / torch.from_numpy(usual[smooth])
    return (ratio.median(1).values > JUMP).nonzero().flatten().tolist() if len(smooth) else []


def _shown(numbers: list[int]) -> str:
    """The first eight."""
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


def _returns(data: Dataset, task: Task) -> str:
    how = task.continuing, task.recorded_return
    returns, whole = (datasets.recorded_returns(data, steps, *how) for steps in (task.horizon, len(data)))
    if not len(returns):
        return f"no window of {task.horizon} steps fits"
    values = np.quantile(returns, QUANTILES)
    shown = ", ".join(f"{100 * q:.0f}% {value:.4g}" for q, value in zip(QUANTILES, values, strict=True))
    said = f"{shown} (quantiles of {len(returns):,} {'windows' if task.continuing else 'episodes'})"
    if task.continuing or torch.bincount(data.episode).max() <= task.horizon:
        return said
    low, high = data.reference_scores or (np.nan, np.nan)
    means = [f"{each.mean():.4g} (score {100 * (each.mean() - low) / (high - low):.3g})" for each in (returns, whole)]
    return f"{said}, of {task.horizon} steps as in evaluation: mean {means[0]}; of whole episodes: mean {means[1]}"
