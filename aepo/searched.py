"""What the search of one number a method chose, by family of tasks: `aepo ablations --questions factor,own`.

Each number is the best of five, a quarter to four times its default, by the mean score over the family's tasks here, at
`quick`; `aepo results` prints the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FAMILIES = {  # and the tasks on which their numbers were searched
    "Maze2D": ("maze2d-umaze",),
    "PointMaze": ("local-pointmaze-umaze",),
    "robots": ("local-invertedpendulum-mixed", "local-hopper-mixed", "local-halfcheetah-mixed"),
}
LOOKED_AT = (*(task for tasks in FAMILIES.values() for task in tasks), "local-reacher-mixed")  # for any setting


def _settings(
    scale: Mapping[str, float], *, candidates: int = 16, iql: float = 3.0, qipo: float = 3.0, alpha: float = 2.5
) -> dict[str, dict[str, Any]]:
    """Settings by stage: factors of the guidance scale by method, candidates of those that pick, beta, alpha of td3bc."""
    return {
        "policy": {"alpha": alpha},
        "evaluation": {"scale_factor": dict(scale), "beta": {"iql": iql, "qipo": qipo}, "candidates": candidates},
    }


MAZE2D = _settings(
    {
        "qgpo": 4.0,
        "aepo": 0.5,
    },
    candidates=64,
    qipo=12.0,
    alpha=5.0,
)
POINTMAZE = _settings(
    {
        "qgpo": 2.0,
        "aepo": 2.0,
        "aepo-support": 4.0,
    },
    qipo=12.0,
    alpha=10.0,
)
ROBOTS = _settings(
    {
        "aepo": 2.0,
    },
    iql=1.5,
    qipo=6.0,
)
