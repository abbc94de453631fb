"""Observations as environments give them, dicts of parts too, as one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def flatten(observation: Any, keys: Sequence[str]) -> np.ndarray:
    """The parts `keys` of a dict observation joined along the last axis in that order; one observation, or a batch.

    Arrays pass as they are. ValueError names the parts that are missing, or says that there should be none.
    """
    if not isinstance(observation, Mapping):
        return np.asarray(observation)
    missing = [key for key in keys if key not in observation]
    if missing or not keys:
        raise ValueError(
            f"the observation is a dict of {', '.join(map(str, observation))}: "
            + (f"it lacks {', '.join(missing)}" if missing else "an array is needed here")
        )
    return np.concatenate([np.asarray(observation[key]) for key in keys], axis=-1)
