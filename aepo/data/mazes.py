"""Maze maps of evaluation: 1 wall, 0 free (a start where there is no "r"), "r" the start, "g" the goal.

PointMaze's are those of Minari's official scripts: one goal, starts everywhere else. AntMaze's have one start too;
for its U-maze the script's map is turned by 180 degrees against the one the data were made in, which stands here.
"""

from __future__ import annotations

from aepo.environments import MAZES

G, R = "g", "r"
Map = list[list[int | str]]

OPEN: Map = [
    [1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1],
]
UMAZE: Map = [
    [1, 1, 1, 1, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 0, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]
MEDIUM: Map = [
    [1, 1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 1, 1, 0, 0, 1],
    [1, 0, 0, 1, 0, 0, 0, 1],
    [1, 1, 0, 0, 0, 1, 1, 1],
    [1, 0, 0, 1, 0, 0, 0, 1],
    [1, 0, 1, 0, 0, 1, 0, 1],
    [1, 0, 0, 0, 1, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1, 1],
]
LARGE: Map = [
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1],
    [1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 1],
    [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1],
    [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 0, 1],
    [1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 1],
    [1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1],
    [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
]
GOAL_CELLS = {size: goal for size, (_, goal) in MAZES.items()}


def _marked(maze: Map, **cells: tuple[int, int]) -> Map:
    """A copy of a map with letters at the given cells."""
    copy = [list(row) for row in maze]
    for letter, (row, column) in cells.items():
        copy[row][column] = letter
    return copy


SIZES = {"open": OPEN, "umaze": UMAZE, "medium": MEDIUM, "large": LARGE}
POINT_GOALS = {size: _marked(maze, g=GOAL_CELLS[size]) for size, maze in SIZES.items()}
ANT_GOALS = {
    "umaze": _marked(UMAZE, g=(1, 1), r=(3, 1)),
    "medium": _marked(MEDIUM, g=(6, 6), r=(1, 1)),
    "large": _marked(LARGE, g=(7, 9), r=(1, 1)),
}
