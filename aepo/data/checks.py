"""What data must fulfil before anything is made of them: each violation is one sentence (StudyError)."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import numpy as np

from aepo.files import StudyError

TOLERANCE = 1e-6  # of the box's width: rounding, not a violation
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
    if 0 in sizes.values():
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


def observation_size(space: gym.Space, wanted: tuple[str, ...], name: str) -> int:
    """Numbers in an observation: of a box all, of a dict those of the wanted parts."""
    parts = [space]
    if isinstance(space, gym.spaces.Dict):
        if not wanted or not set(wanted) <= set(space):
            raise StudyError(
                f"{name} has observations with the parts {', '.join(space)}, its task takes "
                f"{', '.join(wanted) or 'plain arrays'}: correct the task's observation_keys"
            )
        parts = [space[key] for key in wanted]
    for part in parts:
        if not isinstance(part, gym.spaces.Box):
            raise StudyError(f"{name} has observations {part}: {ONLY_VECTORS}")
        observation_vectors(part.shape, part.dtype, name)
    return sum(part.shape[0] for part in parts)


def finite(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """No NaN, no infinity; the sentence says in which array and at which step first."""
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            wrong = np.argwhere(~np.isfinite(array))
            raise StudyError(f"{name}: {key} holds NaN or infinity ({len(wrong)} numbers, first at step {wrong[0, 0]})")


def outside_box(actions: np.ndarray, box: gym.spaces.Box) -> tuple[int, float]:
    """How many actions `(N, d)` leave the box, and by how much at most; rounding is not counted."""
    excess = np.maximum(box.low - actions, actions - box.high)
    count = (excess > TOLERANCE * (box.high - box.low)).any(1).sum()
    return int(count), float(excess.max(initial=0.0))


def inside_box(actions: np.ndarray, box: gym.spaces.Box, name: str, remedy: str) -> None:
    """All actions lie in the box; else how many do not, and by how much."""
    count, most = outside_box(actions, box)
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
