"""What tasks there are: one table of names, data and environments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One offline RL task. `horizon`: steps of an evaluation episode; `dataset_ids`: Minari id a profile."""

    name: str
    suite: str
    env_id: str
    dataset_ids: dict[str, str]
    horizon: int
    continuing: bool
    recipe: str
    scores: str


def _maze2d(name: str, env_id: str) -> Task:
    stem = f"aepo/maze2d/{name}"
    return Task(
        name=f"maze2d-{name}",
        suite="maze2d",
        env_id=env_id,
        dataset_ids={"smoke": f"{stem}-smoke-v0", "quick": f"{stem}-v0", "full": f"{stem}-full-v0"},
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
