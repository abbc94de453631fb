"""Planes to draw states in: a task's maze, or the first two principal components of its data."""

import contextlib

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes

from aepo import environments
from aepo.data.datasets import Dataset
from aepo.data.tasks import Task

PCA_ROWS = 50_000


class MazeMap:
    """Walls and goal of a task's maze, to draw under anything that has positions: the first two numbers of a state."""

    def __init__(self, env: gym.Env):
        self.maze, unwrapped = env.unwrapped.get_wrapper_attr("maze"), env.unwrapped
        self.scale = float(self.maze.maze_size_scaling)
        self.free = np.array([[cell != 1 for cell in row] for row in self.maze.maze_map])
        cells = self.maze.unique_goal_locations
        one = np.asarray(cells[0], dtype=float) if len(cells) == 1 else None
        self.goal = unwrapped.goal if isinstance(unwrapped, environments.Maze2D) else one

    def project(self, states: np.ndarray) -> np.ndarray:
        """Positions `(..., 2)` of states `(..., n)`."""
        return np.asarray(states)[..., :2]

    def bins(self, width: float) -> list[np.ndarray]:
        """Edges of bins over the maze, `width` in cells, along x and y."""
        half = (self.scale * count / 2 for count in self.free.shape[::-1])
        return [np.arange(-s, s + 1e-9, width * self.scale) for s in half]

    def draw(self, axes: Axes) -> None:
        """Walls grey, the goal disc outlined where there is one goal."""
        half = self.scale / 2
        for row, column in np.argwhere(~self.free):
            x, y = self.maze.cell_rowcol_to_xy(np.array([row, column]))
            axes.add_patch(plt.Rectangle((x - half, y - half), self.scale, self.scale, color="0.75", zorder=0))
        if self.goal is not None:
            look = {"fill": False, "color": "crimson", "lw": 1.5, "zorder": 3}
            axes.add_patch(plt.Circle((self.goal[0], self.goal[1]), environments.GOAL_RADIUS, **look))
        y, x = (half * count for count in self.free.shape)
        axes.set(xlim=(-x, x), ylim=(-y, y), aspect="equal", xlabel="x", ylabel="y")
        axes.grid(False)


class Plane:
    """The plane of the first two principal components of standardised recorded states."""

    goal = None

    def __init__(self, data: Dataset):
        index = torch.linspace(0, len(data) - 1, min(PCA_ROWS, len(data))).long()
        standard = data.standardize(data.state[index]).double()
        self.center, self.std = data.state_mean.double().numpy(), data.state_std.double().numpy()
        _, size, vectors = torch.linalg.svd(standard - standard.mean(0), full_matrices=False)
        share = (size.square() / size.square().sum().clamp(min=1e-12)).numpy()
        axes = vectors[:2].numpy()
        axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # any machine agrees on it
        self.axes = np.concatenate([axes, np.zeros((2 - len(axes), axes.shape[1]))])
        self.labels = [f"principal component {i + 1} ({100 * s:.0f}%)" for i, s in enumerate([*share, 0.0][:2])]
        self._edges = [np.quantile(p, [0.001, 0.999]) for p in self.project(data.state[index].numpy()).T]

    def project(self, states: np.ndarray) -> np.ndarray:
        """Components `(..., 2)` of raw states `(..., n)`."""
        return (np.asarray(states, dtype=np.float64) - self.center) / self.std @ self.axes.T

    def bins(self, width: float) -> list[np.ndarray]:
        """Edges of `10 / width` bins between the extremes of the data."""
        return [np.linspace(low, max(high, low + 1e-6), max(2, round(10 / width)) + 1) for low, high in self._edges]

    def draw(self, axes: Axes) -> None:
        """The components' names, and the share of the variance each holds."""
        axes.set(xlabel=self.labels[0], ylabel=self.labels[1])
        axes.grid(False)


def view(task: Task, data: Dataset) -> MazeMap | Plane:
    """Where to draw a task's states: its maze, or the plane of two principal components."""
    if task.env_id is None:
        return Plane(data)
    with contextlib.closing(environments.make(task, flat=False)) as env:
        return MazeMap(env) if hasattr(env.unwrapped, "maze") else Plane(data)
