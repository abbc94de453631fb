"""Bootstraps: of one task (seeds, then episodes), and over many tasks (Agarwal et al. 2021, arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]  # one array `(seeds,)` a task
DRAWS = 2_000


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all values: the quarters below and above are left out (a quarter of n rounded down)."""
    return float(stats.trim_mean(np.ravel(scores), 0.25))


def nested_bootstrap(returns: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95% percentile interval of `(seeds, episodes)` returns: seeds redrawn first, then episodes within each."""
    rng = np.random.default_rng(seed)
    seeds, episodes = returns.shape
    chosen = rng.integers(seeds, size=(draws, seeds, 1))
    within = rng.integers(episodes, size=(draws, seeds, episodes))
    low, high = np.percentile(returns[chosen, within].mean((1, 2)), [2.5, 97.5])
    return float(returns.mean()), float(low), float(high)


def interval(
    statistic: Callable[..., np.ndarray], samples: Scores, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of a statistic by stratified bootstrap: seeds are redrawn within each task.

    statistic(*samples, axis=-1): samples `(..., seeds)`, one a stratum. A stratum of one seed stays as it is; where every
    stratum is constant, both ends are the value itself.
    """
    if all(np.ptp(sample) == 0 for sample in samples):
        value = float(statistic(*samples, axis=-1))
        return value, value
    several = [i for i, sample in enumerate(samples) if np.size(sample) > 1]

    def of_several(*drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        everything = dict(enumerate(samples)) | dict(zip(several, drawn, strict=True))
        return statistic(*everything.values(), axis=axis)

    found = stats.bootstrap(
        tuple(samples[i] for i in several),
        of_several,
        n_resamples=draws,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _together(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Strata `(..., seeds)` side by side: `(..., seeds of all)`."""
    lead = np.broadcast_shapes(*(np.shape(s)[:-1] for s in samples))
    return np.concatenate([np.broadcast_to(s, (*lead, np.shape(s)[-1])) for s in samples], -1)


def aggregate(scores: Scores) -> tuple[float, float, float]:
    """Interquartile mean over tasks x seeds and its 95% interval."""

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return stats.trim_mean(_together(samples), 0.25, axis=-1)

    return interquartile_mean(_together(scores)), *interval(statistic, scores)


def improvement(scores: Scores, others: Scores) -> tuple[float, float, float]:
    """P(a run of one method beats a run of the other on the same task), mean over tasks, ties half; with its interval."""
    count = len(scores)

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        wins = []
        for own, other in zip(samples[:count], samples[count:], strict=True):
            difference = own[..., :, None] - other[..., None, :]
            wins.append(((difference > 0) + 0.5 * (difference == 0)).mean((-2, -1)))
        return np.mean(np.stack(np.broadcast_arrays(*wins)), 0)

    both = [*scores, *others]
    return float(statistic(*both)), *interval(statistic, both)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs whose score is above each threshold, all tasks weighing the same: `(thresholds,)`."""
    shares = [(np.asarray(task)[:, None] > thresholds).mean(0) for task in scores]
    return np.mean(shares, 0)


def mean_ranks(means: np.ndarray) -> np.ndarray:
    """Mean rank of each method over tasks, 1 the best, ties shared: means `(methods, tasks)` -> `(methods,)`."""
    return stats.rankdata(-means, axis=0).mean(1)
