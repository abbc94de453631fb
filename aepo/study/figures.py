"""The study's style, and figures of data and networks: each takes what it shows and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from aepo import files
from aepo.core.guidance import KINDS
from aepo.core.models import Critic
from aepo.data.datasets import Dataset
from aepo.methods import DATASET, METHODS
from aepo.study.policy import Policy
from aepo.study.views import MazeMap, View

PANELS = 6  # most in a row


def _family(method: str) -> str:
    """What kind of policy a method is, by the colormap that its kind is drawn in."""
    entry = METHODS[method]
    if entry.shift:
        return "Reds"
    if entry.energy == "contrastive":
        return "Purples"
    if entry.energy:
        return "Blues" if entry.energy in KINDS or entry.energy.startswith("shift") else "Greens"
    return "YlOrBr" if entry.best else "Greys" if not entry.policy else "RdPu"


def _colors() -> dict[str, tuple[float, ...]]:
    families, found = {}, {DATASET: (0.3, 0.3, 0.3)}
    for method in METHODS:
        families.setdefault(_family(method), []).append(method)
    for family, methods in families.items():
        shades = sns.color_palette(family, len(methods) + 2)[2:]
        found |= dict(zip(methods, reversed(shades), strict=True))
    return found


# One hue a kind: a closed form of the shift (red), a network that learned a closed form (blue), a support or clean
# estimate (green) or the contrastive loss (purple); picks (brown); policies of their own (pink); cloning (grey).
COLORS = _colors()


def use_style() -> None:
    """Set the study's look; call it once a notebook."""
    sns.set_theme(
        style="whitegrid",
        context="paper",
        rc={"figure.dpi": 80, "savefig.dpi": 110, "figure.constrained_layout.use": True},
    )


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically and without a time stamp, and close it; returns the path."""
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)  # a notebook shows the figure that a cell ends with, and not once more
    return path


def panels(
    count: int, width: float, height: float, most: int = PANELS, **shared: bool
) -> tuple[Figure, list[plt.Axes]]:
    """A figure of `count` panels of that size in inches, in rows of at most `most`."""
    columns = min(count, most)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **shared)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def coverage(data: Dataset, view: View, arrows: float = 0.25) -> Figure:
    """Where the data were collected, and the mean step from there, in a maze or the plane of two components."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    here, there = (view.project(states.numpy()) for states in (data.state, data.next_state))
    for ax in axes:
        view.draw(ax)
    axes[0].hist2d(*here.T, bins=view.bins(arrows / 2), cmin=1, cmap="viridis", norm="log")
    axes[0].set_title(f"{len(data):,} recorded states (log count)")
    bins = view.bins(arrows)
    count = np.histogram2d(*here.T, bins=bins)[0]
    means = [np.histogram2d(*here.T, bins=bins, weights=step)[0] / np.maximum(count, 1) for step in (there - here).T]
    centers = np.meshgrid(*[(b[:-1] + b[1:]) / 2 for b in bins], indexing="ij")
    shown = count > 0
    size = np.sqrt(sum(m**2 for m in means))[shown]
    axes[1].quiver(*[c[shown] for c in centers], *[m[shown] for m in means], size, cmap="magma")
    axes[1].set_title("mean recorded step")
    return figure


def action_density(data: Dataset) -> Figure:
    """Density of recorded actions, jointly where there are two and by dimension else, and lengths of the episodes."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    action = data.action.numpy()
    d = action.shape[1]
    if d == 1:
        axes[0].hist(action[:, 0], bins=50, range=(-1, 1), log=True)
        axes[0].set(title="recorded actions (log count)", xlabel="action, scaled to the box")
    elif d == 2:
        axes[0].hist2d(*action.T, bins=50, cmap="viridis", norm="log")
        axes[0].set(title="recorded actions (log count)", xlabel="action 0", ylabel="action 1", aspect="equal")
    else:
        edges = np.linspace(-1, 1, 51)
        counts = np.stack([np.histogram(action[:, i], edges)[0] for i in range(d)])
        counts = np.where(counts > 0, counts, np.nan)
        axes[0].pcolormesh(edges, np.arange(d + 1) - 0.5, counts, cmap="viridis", norm="log")
        axes[0].set(title="recorded actions (log count)", xlabel="action, scaled to the box", ylabel="dimension")
        axes[0].grid(False)
        axes[0].yaxis.get_major_locator().set_params(integer=True)
    axes[1].hist(torch.bincount(data.episode).numpy(), bins=40)
    axes[1].set(title="lengths of the recorded episodes", xlabel="steps", ylabel="episodes")
    return figure


def recorded_rewards(data: Dataset, recorded: np.ndarray, continuing: bool) -> Figure:
    """Returns of the recorded behavior, and the mean reward over the time since an episode's start (and its deciles)."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    axes[0].hist(recorded, bins=40)
    axes[0].set(title="recorded returns", xlabel="return", ylabel="windows" if continuing else "episodes")
    lengths = torch.bincount(data.episode)
    start = torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    step = (torch.arange(len(data)) - start).numpy()
    bins = np.linspace(0, step.max() + 1, min(100, step.max() + 1) + 1)
    which = np.digitize(step, bins) - 1
    by_time = pd.Series(data.reward.double().numpy()).groupby(which)
    when = bins[by_time.mean().index.to_numpy()]
    axes[1].fill_between(when, by_time.quantile(0.1), by_time.quantile(0.9), alpha=0.2, label="10% to 90%")
    axes[1].plot(when, by_time.mean(), label="mean")
    axes[1].set(title="reward over time", xlabel="step of the episode", ylabel="reward")
    axes[1].legend()
    return figure


def ranges(data: Dataset) -> Figure:
    """Each dimension of observations and actions: median, quartiles, 1% and 99%, extremes."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=[2, 1])
    index = torch.linspace(0, len(data) - 1, min(100_000, len(data))).long()
    shown = {"observations": data.state, "actions, scaled to the box": data.action}
    for ax, (title, values) in zip(axes, shown.items(), strict=True):
        shares = [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1]
        low, one, quarter, half, three, most, high = np.quantile(values[index].numpy(), shares, axis=0)
        where = np.arange(len(half))
        ax.vlines(where, one, most, lw=1)
        ax.vlines(where, quarter, three, lw=4, alpha=0.6)
        ax.plot(where, half, "k_", ms=5)
        ax.plot(where, low, "k.", where, high, "k.", ms=2)
        ax.set(title=title, xlabel="dimension")
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_yscale("symlog")
    return figure


def losses(log: pd.DataFrame, columns: Mapping[str, str], log_scale: bool = True) -> Figure:
    """Training curves, one panel a column (name -> title), one line a seed."""
    figure, axes = panels(len(columns), 4, 3)
    for ax, (name, title) in zip(axes, columns.items(), strict=True):
        sns.lineplot(log, x="step", y=name, hue="seed", palette="colorblind", ax=ax, legend=ax is axes[0])
        ax.set(title=title, ylabel="", yscale="log" if log_scale else "linear")
    return figure


def action_match(recorded: np.ndarray, sampled: np.ndarray) -> Figure:
    """Recorded beside sampled actions `(N, d)` of the same states: joint density of two dimensions, marginals.

    Shown are the dimensions that vary most.
    """
    shown = sorted(np.argsort(-recorded.std(0), kind="stable")[:2])
    both = {"recorded": recorded, "sampled": sampled}
    joint = both if len(shown) > 1 else {}
    figure, axes = panels(len(joint) + len(shown), 3.2, 3)
    for ax, (label, actions) in zip(axes, joint.items(), strict=False):
        ax.hist2d(*actions[:, shown].T, bins=50, range=[[-1, 1]] * 2, cmap="viridis", norm="log")
        ax.set(title=f"{label} actions", xlabel=f"action {shown[0]}", ylabel=f"action {shown[1]}", aspect="equal")
    for i, ax in zip(shown, axes[len(joint) :], strict=True):
        for label, actions in both.items():
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
    critic: Critic, data: Dataset, view: View, collected: np.ndarray, row: int = 0, count: int = 20_000
) -> Figure:
    """Mean V of recorded states in a maze or the plane of two components; beside it what V knows.

    In a maze with two actions: the direction of highest Q at some states. Else: V against `collected` `(N,)`, the
    discounted reward that the recorded behavior collected next, in units of the critic's reward.
    """
    index = torch.linspace(0, len(data) - 1, min(count, len(data))).long()
    device, seeds = critic.std.device, critic.std.shape[0]
    state = data.standardize(data.state[index]).to(device).expand(seeds, -1, -1)
    value = critic.value(state)[row].cpu().numpy()
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    view.draw(axes[0])
    xy = view.project(data.state[index].numpy())
    bins = view.bins(0.1)
    visits, total = (np.histogram2d(*xy.T, bins=bins, weights=w)[0] for w in (None, value))
    mean = np.where(visits > 0, total / np.maximum(visits, 1), np.nan)
    shown = axes[0].pcolormesh(*bins, mean.T, cmap="viridis", zorder=1)
    figure.colorbar(shown, ax=axes[0])
    axes[0].set_title("mean V of recorded states")
    if isinstance(view, MazeMap) and data.action.shape[1] == 2:
        view.draw(axes[1])
        few = slice(None, None, max(1, len(index) // 400))
        axes[1].quiver(*xy[few].T, *_best_forces(critic, state[:, few], row).T, value[few], cmap="viridis", scale=40)
        axes[1].set_title(r"direction of highest $Q(s, a)$ at recorded states")
    else:
        axes[1].hexbin(collected[index.numpy()], value, gridsize=40, mincnt=1, cmap="viridis", bins="log")
        axes[1].set(title="V of recorded states (log count)", xlabel="discounted reward collected next", ylabel="V")
    return figure


def _best_forces(critic: Critic, state: torch.Tensor, row: int) -> np.ndarray:
    """Of 16 directions on the box's edge, the action of highest Q at standardised states `(S, B, n)`: `(B, 2)`."""
    angle = torch.arange(16) * (2 * torch.pi / 16)
    force = torch.stack([angle.cos(), angle.sin()], 1)
    force = (force / force.abs().amax(1, keepdim=True)).to(state.device)
    q = torch.stack([critic.q.minimum(state, f.expand(*state.shape[:2], 2)) for f in force], -1)[row]
    return force[q.argmax(-1)].cpu().numpy()


@torch.no_grad()
def guidance_field(policy: Policy, state: np.ndarray, times: tuple[float, ...] = (0.9, 0.5, 0.1)) -> Figure:
    """Samples of the unguided and guided policy at one state, and the field of grad E over noisy actions.

    With more than two actions: the two that guidance moves most, the others at the mean of the guided samples.
    """
    actor, device, d = policy.actor, policy.device, policy.action_dim
    batch = np.repeat(np.asarray(state, dtype=np.float32)[None], 500, 0)
    cloning = Policy(replace(actor, guidance_scale=0.0), policy.state_dim, d, device)
    low, high = (bound[0, 0].cpu().numpy() for bound in (actor.behavior.low, actor.behavior.high))
    cloned, guided = (
        2 * (p.act(batch, torch.Generator().manual_seed(0)) - low) / (high - low) - 1 for p in (cloning, policy)
    )
    pair = sorted(np.argsort(-np.abs(guided.mean(0) - cloned.mean(0)), kind="stable")[:2])
    figure, axes = panels(len(times) + 2, 3, 3.1)
    names = [f"action {i}" for i in pair]
    samples = {"guidance scale 0": cloned, f"guidance scale {actor.guidance_scale:g}": guided}
    for ax, (title, actions) in zip(axes, samples.items(), strict=False):
        if d == 1:
            ax.hist(actions[:, 0], bins=40, range=(-1.1, 1.1))
        else:
            ax.scatter(*actions[:, pair].T, s=4, alpha=0.5)
            ax.set(ylim=(-1.1, 1.1), aspect="equal", ylabel=names[1])
        ax.set(title=title, xlim=(-1.1, 1.1), xlabel=names[0])
    axis = torch.linspace(-1.5, 1.5, 15, device=device)
    plane = torch.stack(torch.meshgrid(*[axis] * len(pair), indexing="ij"), -1).reshape(-1, len(pair))
    grid = torch.as_tensor(guided.mean(0), dtype=torch.float32, device=device).expand(1, len(plane), d).clone()
    grid[..., pair] = plane
    raw = torch.as_tensor(state, dtype=torch.float32, device=device)
    states = actor.behavior.standardize(raw.expand(1, len(plane), -1))
    where = plane.cpu().numpy()
    for ax, t in zip(axes[2:], times, strict=True):
        gradient = actor.energy.gradient(states, grid, torch.tensor(t, device=device))[0, :, pair].cpu().numpy()
        if d == 1:
            ax.plot(where[:, 0], gradient[:, 0])
        else:
            ax.quiver(*where.T, *gradient.T, np.linalg.norm(gradient, axis=1), cmap="magma")
            ax.set(aspect="equal")
        ax.set(title=f"$\\nabla E$ at t = {t:g}", xlabel=f"$a_t$, {names[0]}")
    return figure


def trajectories(states: Mapping[str, np.ndarray], view: View) -> Figure:
    """States `(T, E, n)` of a few episodes of each method in a maze or the plane of two components; a dot: the start."""
    figure, axes = panels(len(states), 2.6, 2.6, sharex=True, sharey=True)
    for ax, (name, path) in zip(axes, states.items(), strict=True):
        view.draw(ax)
        for episode in range(path.shape[1]):
            xy = view.project(path[:, episode])
            ax.plot(*xy.T, lw=0.8, alpha=0.8)
            ax.plot(*xy[0], "k.", ms=4)
        ax.set_title(name)
    return figure
