"""Bootstraps: of one task (seeds, then episodes), and over many tasks (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

Scores = Sequence[np.ndarray]  # one array `(seeds,)` a task
DRAWS = 2_000


def interquartile_mean(scores: np.ndarray) -> float:
    """Mean of the middle half of all values: a quarter of n, rounded down, is left out at either end."""
    return float(stats.trim_mean(np.ravel(scores), 0.25))


def nested_bootstrap(returns: np.ndarray, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and 95% percentile interval of `(seeds, episodes)` returns: seeds redrawn first, then episodes within each."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(returns), size=(draws, len(returns), 1))
    means = [returns[rows, rng.integers(returns.shape[1], size=returns.shape)].mean() for rows in chosen]
    return float(returns.mean()), *_interval(np.array(means))


def _redrawn(scores: Scores, seed: int = 0) -> list[np.ndarray]:
    """A stratified bootstrap: the seeds of each task redrawn DRAWS times, `(DRAWS, seeds)` a task."""
    rng = np.random.default_rng(seed)
    return [task[rng.integers(len(task), size=(DRAWS, len(task)))] for task in scores]


def _redrawn_alike(scores: Scores, others: Scores) -> list[list[np.ndarray]]:
    """Both methods' seeds redrawn, the same where they have as many: a seed's critic, starts and noise are all methods'."""
    paired = all(len(own) == len(other) for own, other in zip(scores, others, strict=True))
    return [_redrawn(scores), _redrawn(others, seed=0 if paired else 1)]


def _interval(statistics: np.ndarray) -> tuple[float, float]:
    """95% percentile interval of a statistic `(draws,)`."""
    return tuple(np.percentile(statistics, [2.5, 97.5]).tolist())


def aggregate(scores: Scores) -> tuple[float, float, float]:
    """Interquartile mean over tasks x seeds and its 95% interval."""
    drawn = stats.trim_mean(np.concatenate(_redrawn(scores), -1), 0.25, axis=-1)
    return interquartile_mean(np.concatenate(scores)), *_interval(drawn)


def difference(scores: Scores, others: Scores) -> tuple[float, float, float]:
    """How far one method's interquartile mean is ahead of the other's, with its 95% interval."""
    own, other = (stats.trim_mean(np.concatenate(drawn, -1), 0.25, axis=-1) for drawn in _redrawn_alike(scores, others))
    return aggregate(scores)[0] - aggregate(others)[0], *_interval(own - other)


def improvement(scores: Scores, others: Scores) -> tuple[float, float, float]:
    """P(a run of one method beats a run of the other on the same task), mean over tasks, ties half; with its interval."""

    def chance(scores: Scores, others: Scores) -> np.ndarray:
        differences = [own[..., :, None] - other[..., None, :] for own, other in zip(scores, others, strict=True)]
        return np.mean([((apart > 0) + 0.5 * (apart == 0)).mean((-2, -1)) for apart in differences], 0)

    return float(chance(scores, others)), *_interval(chance(*_redrawn_alike(scores, others)))
