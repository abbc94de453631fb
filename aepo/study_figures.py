"""Figures over many tasks: each takes tables of `aepo.study` or scores and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aepo import statistics
from aepo.methods import LABELS

PALETTE = sns.color_palette("husl", len(LABELS))
COLORS = dict(zip(LABELS, PALETTE, strict=True))


def by_task(table: pd.DataFrame) -> Figure:
    """Mean score of every method on every task; blank where it was not run."""
    size = (1.6 + 0.85 * table.shape[1], 1.2 + 0.32 * len(table))
    figure, ax = plt.subplots(figsize=size)
    shown = table.rename(index=LABELS)
    best = table.max()
    sns.heatmap(
        shown / best.abs().clip(lower=1),
        annot=shown.round(0),
        fmt=".0f",
        cmap="crest",
        cbar=False,
        ax=ax,
        vmin=0,
        vmax=1,
    )
    ax.set(xlabel="", ylabel="", title="mean score, last checkpoint; color: share of the best of the column")
    ax.tick_params(axis="x", rotation=35)
    for label in ax.get_xticklabels():
        label.set_ha("right")
    return figure


def intervals(summary: pd.DataFrame, tasks: int) -> Figure:
    """Interquartile mean of each method with its 95% interval, best on top."""
    figure, ax = plt.subplots(figsize=(6, 0.32 * len(summary) + 1))
    rows = summary.iloc[::-1]
    error = np.abs(rows[["low", "high"]].to_numpy().T - rows["iqm"].to_numpy())
    names = [LABELS[m] for m in rows["method"]]
    ax.barh(names, rows["iqm"], xerr=error, color=[COLORS[m] for m in rows["method"]], error_kw={"capsize": 3})
    ax.set(xlabel=f"interquartile mean score over {tasks} tasks x seeds, 95% stratified bootstrap")
    return figure


def profiles(scores: Mapping[str, statistics.Scores]) -> Figure:
    """Share of runs above each score, one line a method."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6))
    everything = np.concatenate([np.concatenate(runs) for runs in scores.values()])
    thresholds = np.linspace(min(0.0, everything.min()), everything.max(), 201)
    for method, runs in scores.items():
        ax.plot(
            thresholds, statistics.performance_profile(runs, thresholds), label=LABELS[method], color=COLORS[method]
        )
    ax.set(xlabel="score", ylabel="share of runs above it", title="performance profiles")
    ax.legend(bbox_to_anchor=(1, 0.5), loc="center left")
    return figure


def improvements(scores: Mapping[str, statistics.Scores], against: Sequence[str]) -> Figure:
    """P(a run of the method beats one of another on the same task), with 95% intervals; one panel an opponent."""
    figure, axes = plt.subplots(1, len(against), figsize=(3.6 * len(against), 0.3 * len(scores) + 1.2), squeeze=False)
    for ax, other in zip(axes[0], against, strict=True):
        rows = [(m, *statistics.improvement(runs, scores[other])) for m, runs in scores.items() if m != other]
        for place, (method, value, low, high) in enumerate(reversed(rows)):
            ax.plot([low, high], [place, place], color=COLORS[method], lw=3, alpha=0.6)
            ax.plot(value, place, "o", color=COLORS[method])
        ax.axvline(0.5, color="0.4", ls="--", lw=1)
        ax.set(title=f"P(better than {LABELS[other]})", xlim=(0, 1), yticks=range(len(rows)))
        ax.set_yticklabels([LABELS[row[0]] for row in reversed(rows)] if ax is axes[0][0] or other in scores else [])
    return figure


def ablation(rows: pd.DataFrame) -> Figure:
    """Mean score of each variant with the range of its seeds, one panel a task: columns task, variant, seed, score."""
    names = list(dict.fromkeys(rows["task"]))
    variants = list(dict.fromkeys(rows["variant"]))
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.4 * len(names) + 1.5, 0.34 * len(variants) + 1), squeeze=False, sharey=True
    )
    for ax, task in zip(axes[0], names, strict=True):
        part = rows[rows["task"] == task]
        sns.pointplot(
            part, x="score", y="variant", order=variants, errorbar=("pi", 100), linestyle="none", capsize=0.2, ax=ax
        )
        ax.set(title=task, ylabel="")
    return figure
