"""What tasks there are: one table of names, data and environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MINARI, D4RL, LOCAL = "minari", "d4rl", "local"


@dataclass(frozen=True)
class Task:
    """One offline RL task: where its data come from, the environment that evaluates it, and what its scores mean.

    `source`: MINARI (downloaded), D4RL (an HDF5 file, imported) or LOCAL (collected by `recipe`, with `tier` where it
    has several). `dataset_ids`: Minari id a profile. `env_id` None: train-only, no environment of today fits the data.
    `observation_keys`: the parts of a dict observation, flattened in this order; empty for plain arrays.
    `horizon`: steps of an evaluation episode. `continuing`: the recorded episodes are segments of one long walk.
    `references`: returns of score 0 and 100; None: those stored with the dataset, or none. `scores`: their origin.
    `settings`: what differs from the profile, by stage: {"critic": {"discount": 0.99}}. `note`: what readers must know.
    """

    name: str
    suite: str
    source: str
    dataset_ids: Mapping[str, str]
    env_id: str | None
    horizon: int
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    observation_keys: tuple[str, ...] = ()
    continuing: bool = False
    recipe: str | None = None
    tier: str | None = None
    references: tuple[float, float] | None = None
    scores: str = "no reference scores: returns only"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    note: str = ""


def _local_ids(stem: str) -> dict[str, str]:
    """Minari ids of what we make ourselves: never an official one."""
    return {"smoke": f"aepo/{stem}-smoke-v0", "quick": f"aepo/{stem}-v0", "full": f"aepo/{stem}-full-v0"}


def _maze2d(name: str, env_id: str) -> Task:
    return Task(
        name=f"maze2d-{name}",
        suite="maze2d",
        source=LOCAL,
        dataset_ids=_local_ids(f"maze2d/{name}"),
        env_id=env_id,
        horizon=300,
        continuing=True,
        recipe="waypoint",
        scores="0: random policy, 100: noiseless way-point controller, both measured when the data are made",
    )


TASKS = {task.name: task for task in [_maze2d("umaze", "aepo/Maze2D-UMaze-v0")]}


def get(name: str) -> Task:
    """The task of that name, or a ValueError that lists the names there are."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose one of {', '.join(sorted(TASKS))}")
    return TASKS[name]
