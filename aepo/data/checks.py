"""What data must fulfil before anything is made of them: each violation is one sentence (StudyError)."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np

from aepo.files import StudyError

TOLERANCE = 1e-6  # of the box's width: rounding, not a violation
BLOCK = 65_536  # rows looked at at a time, so that checks need no memory worth naming
ONLY_VECTORS = "only vectors of real numbers can be used"


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


def observation_vectors(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """An observation of this shape is a vector of numbers, not an image."""
    if len(shape) != 1 or dtype.kind not in "fi":
        kind = "images it seems" if len(shape) > 1 else "not vectors of numbers"
        raise StudyError(f"{name} has observations of type {dtype} and shape {shape}, {kind}: {ONLY_VECTORS}")


def action_vectors(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """An action of this shape is a vector of real numbers, not the number of a choice."""
    if len(shape) != 1 or dtype.kind != "f":
        raise StudyError(
            f"{name} has actions of type {dtype} and shape {shape}, a discrete action space it seems: {ONLY_VECTORS}"
        )


def action_box(space: gym.Space, name: str) -> gym.spaces.Box:
    """The action space as a bounded box of vectors."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or space.dtype.kind != "f":
        raise StudyError(f"{name} has the action space {space}: {ONLY_VECTORS}, not a discrete action space")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise StudyError(f"{name} has the unbounded action space {space}: actions are scaled by their bounds")
    return space


def observation_parts(space: gym.Space, wanted: tuple[str, ...], name: str) -> int:
    """Numbers in an observation: of a box all, of a dict those of the wanted parts."""
    if isinstance(space, gym.spaces.Dict):
        missing = [key for key in wanted if key not in space.spaces]
        if missing or not wanted:
            raise StudyError(
                f"{name} has observations with the parts {', '.join(space)}, its task takes "
                f"{', '.join(wanted) or 'plain arrays'}: correct the task's observation_keys"
            )
        parts = [space[key] for key in wanted]
    else:
        parts = [space]
    for part in parts:
        if not isinstance(part, gym.spaces.Box):
            raise StudyError(f"{name} has observations {part}: {ONLY_VECTORS}")
        observation_vectors(part.shape, part.dtype, name)
    return sum(part.shape[0] for part in parts)


def finite(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """No NaN, no infinity; the sentence says in which array and at which step first."""
    for key, array in arrays.items():
        if array.dtype.kind != "f":
            continue
        bad, first = 0, None
        for start in range(0, len(array), BLOCK):
            wrong = ~np.isfinite(array[start : start + BLOCK])
            if wrong.any():
                rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(1))
                bad += int(wrong.sum())
                first = start + int(rows[0]) if first is None else first
        if bad:
            raise StudyError(f"{name}: {key} holds NaN or infinity ({bad} numbers, first at step {first})")


def outside(actions: np.ndarray, box: gym.spaces.Box) -> tuple[int, float]:
    """How many actions `(N, d)` leave the box, and by how much at most; rounding is not counted."""
    count, most = 0, 0.0
    slack = TOLERANCE * (box.high - box.low)
    for start in range(0, len(actions), BLOCK):
        part = actions[start : start + BLOCK]
        excess = np.maximum(box.low - part, part - box.high)
        count += int((excess > slack).any(1).sum())
        most = max(most, float(excess.max(initial=0.0)))
    return count, most


def inside_box(actions: np.ndarray, box: gym.spaces.Box, name: str, remedy: str) -> None:
    """All actions lie in the box; else how many do not, and by how much."""
    count, most = outside(actions, box)
    if count:
        raise StudyError(
            f"{name}: {count} of {len(actions)} actions are outside the action box, by {most:.3g} at most: {remedy}"
        )


def same_sizes(found: tuple[int, int], expected: tuple[int, int], name: str, other: str) -> None:
    """As many numbers in an observation and in an action as `other`, the task or its environment, has."""
    if tuple(found) != tuple(expected):
        raise StudyError(
            f"{name} has {found[0]} observations and {found[1]} actions, {other} {expected[0]} and {expected[1]}: "
            "it belongs to another task"
        )


def same_box(found: gym.spaces.Box, expected: gym.spaces.Box, name: str, other: str) -> None:
    """The bounds of actions are those of the task's environment."""
    if not (np.allclose(found.low, expected.low) and np.allclose(found.high, expected.high)):
        raise StudyError(
            f"{name} has the action space {found}, {other} {expected}: it belongs to another version of it"
        )


def odd(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What is allowed and yet worth a warning."""
    reward = arrays["reward"]
    same = len(reward) > 1 and bool((reward == reward[0]).all())
    return (f"all {len(reward)} rewards are {reward[0]:g}: nothing can be learned from them",) if same else ()
