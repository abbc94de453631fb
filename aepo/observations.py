"""Observations as environments give them, dicts of parts too, as one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def flatten(observation: Any, keys: Sequence[str]) -> np.ndarray:
    """The parts `keys` of a dict observation joined along the last axis in that order; one observation, or a batch.

    Arrays pass as they are. ValueError names the parts that are missing, says that there should be none, or that shapes
    do not fit together.
    """
    if not isinstance(observation, Mapping):
        return _array(observation, "the observation")
    missing = [key for key in keys if key not in observation]
    if missing or not keys:
        raise ValueError(
            f"the observation is a dict of {', '.join(map(str, observation))}: "
            + (f"it lacks {', '.join(missing)}" if missing else "an array is needed here")
        )
    parts = {key: _array(observation[key], f"the observation's part {key}") for key in keys}
    shapes = {key: part.shape for key, part in parts.items()}
    if len({shape[:-1] for shape in shapes.values()}) > 1 or () in shapes.values():
        shown = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise ValueError(f"the parts of the observation do not fit together: {shown}")
    return np.concatenate(list(parts.values()), axis=-1)


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name} is a list of unequal lengths: an array is needed") from None
