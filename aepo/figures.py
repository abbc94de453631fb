"""One style, one function a figure; each takes what it shows and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aepo import environments, runs
from aepo.datasets import Dataset
from aepo.methods import DATASET, LABELS
from aepo.models import Critic
from aepo.policy import Policy

COLORS = dict(zip(LABELS, sns.color_palette("colorblind", len(LABELS)), strict=True))


def use_style() -> None:
    """Set the study's look; call it once a notebook."""
    sns.set_theme(
        style="whitegrid",
        context="paper",
        rc={"figure.dpi": 80, "savefig.dpi": 110, "figure.constrained_layout.use": True},
    )


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically and without a time stamp, and close it; returns the path."""
    with runs.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)  # a notebook shows the figure that a cell ends with, and not once more
    return path


class MazeMap:
    """Walls and goal of a task's maze, to draw under anything that has positions."""

    def __init__(self, env_id: str):
        env = gym.make(env_id, disable_env_checker=True).unwrapped
        self.goal, self.maze = env.goal, env.maze
        self.free = np.array([[cell != 1 for cell in row] for row in self.maze.maze_map])
        env.close()

    def draw(self, axes: Axes) -> None:
        """Walls grey, the goal disc outlined."""
        for row, column in np.argwhere(~self.free):
            x, y = self.maze.cell_rowcol_to_xy(np.array([row, column]))
            axes.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, color="0.75", zorder=0))
        axes.add_patch(plt.Circle(self.goal, environments.GOAL_RADIUS, fill=False, color="crimson", lw=1.5, zorder=3))
        rows, columns = self.free.shape
        axes.set(xlim=(-columns / 2, columns / 2), ylim=(-rows / 2, rows / 2), aspect="equal", xlabel="x", ylabel="y")
        axes.grid(False)


def maze_coverage(data: Dataset, maze: MazeMap) -> Figure:
    """Where the data were collected, and the mean velocity there."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    xy, v = data.state[:, :2].numpy(), data.state[:, 2:].numpy()
    for ax in axes:
        maze.draw(ax)
    axes[0].hist2d(xy[:, 0], xy[:, 1], bins=60, cmin=1, cmap="viridis", norm="log")
    axes[0].set_title(f"{len(data):,} recorded positions (log count)")
    bins = [np.arange(-s / 2, s / 2 + 1e-9, 0.25) for s in maze.free.shape[::-1]]
    count = np.histogram2d(*xy.T, bins=bins)[0]
    means = [np.histogram2d(*xy.T, bins=bins, weights=v[:, i])[0] / np.maximum(count, 1) for i in range(2)]
    centers = np.meshgrid(*[(b[:-1] + b[1:]) / 2 for b in bins], indexing="ij")
    shown = count > 0
    axes[1].quiver(
        *[c[shown] for c in centers], *[m[shown] for m in means], np.sqrt(sum(m**2 for m in means))[shown], cmap="magma"
    )
    axes[1].set_title("mean recorded velocity")
    return figure


def action_density(data: Dataset) -> Figure:
    """Density of recorded actions, and lengths of the recorded segments."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    action = data.action.numpy()
    axes[0].hist2d(action[:, 0], action[:, 1], bins=50, cmap="viridis", norm="log")
    axes[0].set(title="recorded actions (log count)", xlabel="force x", ylabel="force y", aspect="equal")
    axes[1].hist(torch.bincount(data.episode).numpy(), bins=40)
    axes[1].set(title="steps between two goals of the controller", xlabel="steps", ylabel="segments")
    return figure


def losses(log: pd.DataFrame, columns: Mapping[str, str], log_scale: bool = True) -> Figure:
    """Training curves, one panel a column (name -> title), one line a seed."""
    figure, axes = plt.subplots(1, len(columns), figsize=(4 * len(columns), 3), squeeze=False)
    for ax, (name, title) in zip(axes[0], columns.items(), strict=True):
        sns.lineplot(log, x="step", y=name, hue="seed", palette="colorblind", ax=ax, legend=ax is axes[0][0])
        ax.set(title=title, ylabel="", yscale="log" if log_scale else "linear")
    return figure


def action_match(recorded: np.ndarray, sampled: np.ndarray) -> Figure:
    """Recorded beside sampled actions `(N, d)` of the same states: joint density of the first two, marginals of all."""
    d = recorded.shape[1]
    figure, axes = plt.subplots(1, 2 + min(d, 2), figsize=(3.2 * (2 + min(d, 2)), 3))
    for ax, actions, title in zip(axes, (recorded, sampled), ("recorded actions", "sampled actions"), strict=False):
        ax.hist2d(actions[:, 0], actions[:, min(1, d - 1)], bins=50, range=[[-1, 1]] * 2, cmap="viridis", norm="log")
        ax.set(title=title, xlabel="action 0", ylabel="action 1", aspect="equal")
    for i, ax in enumerate(axes[2:]):
        for actions, label in ((recorded, "recorded"), (sampled, "sampled")):
            ax.hist(actions[:, i], bins=60, range=(-1, 1), density=True, histtype="step", label=label)
        ax.set(title=f"action {i}", yscale="log")
        ax.legend()
    return figure


def posterior_variance(table: np.ndarray, times: np.ndarray, bound: np.ndarray) -> Figure:
    """c_t of each seed `(S, T)` against its linear-Gaussian bound `(T,)`."""
    figure, ax = plt.subplots(figsize=(4.5, 3))
    ax.plot(times, bound, color="0.4", ls="--", label="linear-Gaussian bound")
    for seed, row in enumerate(table):
        ax.plot(times, row, label=f"$c_t$, seed row {seed}")
    ax.set(xlabel="t", yscale="log", title="posterior variance of the action given $a_t$")
    ax.legend()
    return figure


@torch.no_grad()
def value_maps(
    critic: Critic, data: Dataset, maze: MazeMap, row: int = 0, count: int = 20_000, arrows: int = 400
) -> Figure:
    """Mean V over recorded states by position, and the direction of highest Q at some of them (colored by V)."""
    index = torch.linspace(0, len(data) - 1, min(count, len(data))).long()
    device, seeds = critic.std.device, critic.std.shape[0]
    state = data.standardize(data.state[index]).to(device).expand(seeds, -1, -1)
    value = critic.value(state)[row].cpu().numpy()
    few = slice(None, None, max(1, len(index) // arrows))
    angle = torch.arange(16) * (2 * torch.pi / 16)
    force = torch.stack([angle.cos(), angle.sin()], 1)
    force = (force / force.abs().amax(1, keepdim=True)).to(device)
    q = torch.stack([critic.q.minimum(state[:, few], f.expand(*state[:, few].shape[:2], 2)) for f in force], -1)[row]
    best = force[q.argmax(-1)].cpu().numpy()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    for ax in axes:
        maze.draw(ax)
    xy = data.state[index, :2].numpy()
    bins = [np.arange(-s / 2, s / 2 + 1e-9, 0.1) for s in maze.free.shape[::-1]]
    visits, total = (np.histogram2d(*xy.T, bins=bins, weights=w)[0] for w in (None, value))
    mean = np.where(visits > 0, total / np.maximum(visits, 1), np.nan)
    shown = axes[0].pcolormesh(*bins, mean.T, cmap="viridis", zorder=1)
    figure.colorbar(shown, ax=axes[0])
    axes[0].set_title("mean V of recorded states")
    axes[1].quiver(*xy[few].T, *best.T, value[few], cmap="viridis", scale=40)
    axes[1].set_title(r"direction of highest $Q(s, a)$ at recorded states")
    return figure


@torch.no_grad()
def guidance_field(policy: Policy, state: np.ndarray, times: tuple[float, ...] = (0.9, 0.5, 0.1)) -> Figure:
    """Samples of the unguided and guided policy at one state, and the field of grad E over noisy actions."""
    actor, device = policy.actor, policy.device
    raw = torch.as_tensor(state, dtype=torch.float32, device=device)
    axis = torch.linspace(-1.5, 1.5, 15, device=device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, -1, 2)
    states = actor.behavior.standardize(raw.expand(1, grid.shape[1], -1))
    figure, axes = plt.subplots(1, len(times) + 2, figsize=(3 * (len(times) + 2), 3.1))
    generator = torch.Generator().manual_seed(0)
    batch = np.repeat(np.asarray(state, dtype=np.float32)[None], 500, 0)
    guided = policy.act(batch, generator)
    generator.manual_seed(0)
    cloned = Policy(replace(actor, guidance_scale=0.0), policy.state_dim, policy.action_dim, device).act(
        batch, generator
    )
    for ax, actions, title in zip(
        axes, (cloned, guided), ("guidance scale 0", f"guidance scale {actor.guidance_scale:g}"), strict=False
    ):
        ax.scatter(*actions.T, s=4, alpha=0.5)
        ax.set(title=title, xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), aspect="equal", xlabel="force x")
    for ax, t in zip(axes[2:], times, strict=True):
        moment = torch.tensor(t, device=device)
        gradient = actor.energy.gradient(states, grid, moment)[0].cpu().numpy()
        xy = grid[0].cpu().numpy()
        ax.quiver(*xy.T, *gradient.T, np.linalg.norm(gradient, axis=1), cmap="magma")
        ax.set(title=f"$\\nabla E$ at t = {t:g}", aspect="equal", xlabel="$a_t$, x")
    return figure


def trajectories(states: Mapping[str, np.ndarray], maze: MazeMap) -> Figure:
    """Positions `(T, E, n)` of a few episodes of each method on the maze; a dot marks the start."""
    figure, axes = plt.subplots(1, len(states), figsize=(3.2 * len(states), 3.2), squeeze=False)
    for ax, (name, path) in zip(axes[0], states.items(), strict=True):
        maze.draw(ax)
        for episode in range(path.shape[1]):
            xy = path[:, episode, :2]
            ax.plot(*xy.T, lw=0.8, alpha=0.8)
            ax.plot(*xy[0], "k.", ms=4)
        ax.set_title(LABELS[name])
    return figure


def scores(table: pd.DataFrame) -> Figure:
    """Mean score of each method with its 95% interval; the recorded behavior as a line."""
    figure, ax = plt.subplots(figsize=(6, 0.5 * len(table) + 1))
    shown = table[table["method"] != DATASET].iloc[::-1]
    error = np.abs(shown[["score_low", "score_high"]].to_numpy().T - shown["score"].to_numpy())
    colors = [COLORS[m] for m in shown["method"]]
    ax.barh([LABELS[m] for m in shown["method"]], shown["score"], xerr=error, color=colors, error_kw={"capsize": 3})
    recorded = table[table["method"] == DATASET]
    if len(recorded):
        ax.axvline(recorded["score"].iloc[0], color="0.3", ls="--", lw=1, label=LABELS[DATASET])
        ax.legend(loc="lower right")
    ax.set(xlabel="normalised score (0: random policy, 100: noiseless controller)")
    return figure


def guidance_curves(curves: pd.DataFrame) -> Figure:
    """Return over guidance scale, one line a beta, one panel a method; bands are 95% intervals over episodes."""
    methods = [m for m in LABELS if m in set(curves["method"])]
    figure, axes = plt.subplots(1, len(methods), figsize=(4.5 * len(methods), 3.2), sharey=True, squeeze=False)
    for ax, method in zip(axes[0], methods, strict=True):
        part = curves[curves["method"] == method]
        sns.lineplot(part, x="guidance_scale", y="return", hue="beta", palette="flare", marker="o", seed=0, ax=ax)
        ax.set(title=LABELS[method], xlabel="guidance scale", xscale="symlog")
        ax.set_xticks(
            sorted(part["guidance_scale"].unique()), [f"{s:g}" for s in sorted(part["guidance_scale"].unique())]
        )
    return figure
