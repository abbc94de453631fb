"""The study's style, and figures of networks and policies: each takes what it shows and returns a matplotlib Figure."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from aepo import files
from aepo.core.models import gaussian_posterior
from aepo.methods import NAMES
from aepo.study.policy import Policy

KINDS = {  # methods of a hue, paler to fuller; colors that the colour-blind tell apart (Okabe and Ito)
    "#555555": ("bc", "bc-low-noise", "bc-weighted"),
    "#0072B2": ("qipo-flow", "qipo", "qgpo", "best-of-n"),
    "#009E73": ("diffusion-ql", "td3bc", "iql"),
    "#D55E00": ("aepo-support", "aepo", "aepo-net", "aepo-shift", "aepo-cubature", "aepo-weighted"),
}
COLORS = dict.fromkeys(NAMES, "#CC79A7")
for _hue, _methods in KINDS.items():
    COLORS |= dict(zip(_methods, sns.light_palette(_hue, len(_methods) + 2)[2:], strict=True))


def use_style() -> None:
    """Set the study's look; call it once a notebook."""
    look = {"figure.dpi": 80, "savefig.dpi": 110, "figure.constrained_layout.use": True}
    sns.set_theme(style="whitegrid", context="paper", rc=look)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, atomically and without a time stamp, and close it; returns the path."""
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)  # a notebook shows the figure that a cell ends with, and not once more
    return path


def panels(count: int, width: float, height: float, most: int = 6, **shared: Any) -> tuple[Figure, list[plt.Axes]]:
    """A figure of `count` panels of that size in inches, in rows of at most `most`."""
    columns = min(count, most)
    rows = -(-count // columns)
    shared |= {"figsize": (width * columns, height * rows), "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, squeeze=False, **shared)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def losses(log: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Training curves, one panel a column (name -> title), one line a seed."""
    figure, axes = panels(len(columns), 4, 3)
    for ax, (name, title) in zip(axes, columns.items(), strict=True):
        sns.lineplot(log, x="step", y=name, hue="seed", palette="colorblind", ax=ax, legend=ax is axes[0])
        ax.set(title=title, ylabel="")
    return figure


def action_match(recorded: np.ndarray, sampled: np.ndarray) -> Figure:
    """Recorded beside sampled actions `(N, d)`: joint density and marginals of the two dimensions that vary most."""
    shown = sorted(np.argsort(-recorded.std(0), kind="stable")[:2])
    both = {"recorded": recorded, "sampled": sampled}
    joint = both if len(shown) > 1 else {}
    figure, axes = panels(len(joint) + len(shown), 3.2, 3)
    for ax, (label, actions) in zip(axes, joint.items(), strict=False):
        ax.hist2d(actions[:, shown[0]], actions[:, shown[1]], bins=50, range=[[-1, 1]] * 2, cmap="viridis", norm="log")
        ax.set(title=f"{label} actions", xlabel=f"action {shown[0]}", ylabel=f"action {shown[1]}", aspect="equal")
    for i, ax in zip(shown, axes[len(joint) :], strict=True):
        for label, actions in both.items():
            ax.hist(actions[:, i], bins=60, range=(-1, 1), density=True, histtype="step", label=label)
        ax.set(title=f"action {i}", yscale="log")
        ax.legend()
    return figure


@torch.no_grad()
def guidance_field(policy: Policy, state: np.ndarray, times: tuple[float, ...] = (0.9, 0.5, 0.1)) -> Figure:
    """Samples with and without guidance at one state, and the field of grad E, or the shift, over noisy actions.

    Of more than two actions: the two that guidance moves most, the others at the mean of the guided samples.
    """
    actor, low = cast(Any, policy.actor), policy.actor.behavior.low
    device, d = low.device, low.shape[-1]
    raw = torch.as_tensor(state, dtype=torch.float32, device=device)
    seen = actor.behavior.standardize(raw.expand(1, 500, -1))
    noise = torch.randn(1, 500, 1, d, generator=torch.Generator().manual_seed(0)).to(device)
    both = (replace(actor, guidance_scale=0.0), actor)
    cloned, guided = (each.propose(seen, noise)[0].cpu().numpy() for each in both)
    pair = sorted(np.argsort(-np.abs(guided.mean(0) - cloned.mean(0)), kind="stable")[:2])
    figure, axes = panels(len(times) + 2, 3, 3.1)
    names = [f"action {i}" for i in pair]
    how = "" if actor.noise_scale else ",\nno initial noise"
    samples = {f"guidance scale 0{how}": cloned, f"guidance scale {actor.guidance_scale:g}{how}": guided}
    for ax, (title, actions) in zip(axes, samples.items(), strict=False):
        if d == 1:
            ax.hist(actions[:, 0], bins=40, range=(-1.1, 1.1))
        else:
            ax.scatter(actions[:, pair[0]], actions[:, pair[1]], s=4, alpha=0.5)
            ax.set(ylim=(-1.1, 1.1), aspect="equal", ylabel=names[1])
        ax.set(title=title, xlim=(-1.1, 1.1), xlabel=names[0])
    axis = torch.linspace(-1.5, 1.5, 15, device=device)
    plane = torch.stack(torch.meshgrid(*[axis] * len(pair), indexing="ij"), -1).reshape(-1, len(pair))
    grid = torch.as_tensor(guided.mean(0), device=device).expand(1, len(plane), d).clone()
    grid[..., pair] = plane
    states, where = seen[:, :1].expand(-1, len(plane), -1), plane.cpu().numpy()
    shift = lambda s, a, t: actor.guide.shift(s, a, t, gaussian_posterior(actor.behavior, s, a, t)[0])  # noqa: E731
    gradient = getattr(actor.guide, "gradient", lambda s, a, t: torch.zeros_like(a))  # of a method that does not guide
    label, by = ("shift", shift) if hasattr(actor.guide, "shift") else (r"$\nabla E$", gradient)
    for ax, t in zip(axes[2:], torch.tensor(times, device=device), strict=True):
        field = by(states, grid, t)[0, :, pair].cpu().numpy()
        if d == 1:
            ax.plot(where[:, 0], field[:, 0])
        else:
            ax.quiver(*where.T, *field.T, np.linalg.norm(field, axis=1), cmap="magma")
            ax.set(aspect="equal")
        ax.set(title=f"{label} at t = {t:g}", xlabel=f"$a_t$, {names[0]}")
    return figure
