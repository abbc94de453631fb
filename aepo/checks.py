"""What data must fulfil before anything is made of them: each violation is one sentence (StudyError)."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np

from aepo.runs import StudyError

TOLERANCE = 1e-6  # of the box's width: rounding, not a violation
BLOCK = 65_536  # rows looked at at a time, so that checks need no memory worth naming


def keys(found: Mapping, needed: tuple[str, ...], name: str) -> None:
    """Every needed key is there."""
    missing = [key for key in needed if key not in found]
    if missing:
        raise StudyError(f"{name} has no {', '.join(map(repr, missing))}: it must hold {', '.join(needed)}")


def lengths(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """All arrays have the same number of rows, at least one."""
    sizes = {key: len(array) for key, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise StudyError(f"{name}: its arrays differ in length ({shown}), so it is damaged or of another kind")
    if not next(iter(sizes.values())):
        raise StudyError(f"{name} is empty: it holds no episode")


def layout(observations: np.ndarray, actions: np.ndarray, name: str) -> None:
    """Observations are vectors `(N, n)`, actions real vectors `(N, d)`."""
    vectors(observations.shape[1:], observations.dtype, name)
    if actions.ndim != 2 or not np.issubdtype(actions.dtype, np.floating):
        raise StudyError(
            f"{name} has actions of type {actions.dtype} and shape {tuple(actions.shape[1:])} a step, a discrete "
            "action space it seems: only vectors of real numbers can be used"
        )


def vectors(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """An observation of this shape is a vector, not an image."""
    if len(shape) != 1 or dtype == np.uint8:
        kind = "images it seems" if len(shape) > 1 or dtype == np.uint8 else "not vectors"
        raise StudyError(
            f"{name} has observations of type {dtype} and shape {tuple(shape)}, {kind}: "
            "only vectors of real numbers can be used"
        )


def finite(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """No NaN, no infinity; the sentence says in which array and at which step first."""
    for key, array in arrays.items():
        bad, first = 0, None
        for start in range(0, len(array), BLOCK):
            wrong = ~np.isfinite(array[start : start + BLOCK])
            rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))
            if len(rows):
                bad += int(wrong.sum())
                first = start + int(rows[0]) if first is None else first
        if bad:
            raise StudyError(f"{name}: {key} holds NaN or infinity ({bad} numbers, first at step {first})")


def outside(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[int, float]:
    """How many actions `(N, d)` leave the box `[low, high]`, and by how much at most; rounding is not counted."""
    count, most = 0, 0.0
    slack = TOLERANCE * (high - low)
    for start in range(0, len(actions), BLOCK):
        part = actions[start : start + BLOCK]
        excess = np.maximum(low - part, part - high)
        wrong = (excess > slack).any(1)
        count += int(wrong.sum())
        most = max(most, float(excess.max(initial=0.0)))
    return count, most


def inside_box(actions: np.ndarray, box: gym.spaces.Box, name: str, remedy: str) -> None:
    """All actions lie in the box; else how many do not, and by how much."""
    count, most = outside(actions, box.low, box.high)
    if count:
        raise StudyError(
            f"{name}: {count} of {len(actions)} actions are outside the action box, by {most:.3g} at most: {remedy}"
        )
