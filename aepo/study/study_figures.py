"""Figures over many tasks: each takes tables of `aepo.study` or scores and returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aepo.study import statistics
from aepo.study.ablations import TIMES
from aepo.study.figures import COLORS, panels


def by_task(table: pd.DataFrame) -> Figure:
    """Mean score of every method on every task; blank where it was not run."""
    size = (1.6 + 0.85 * table.shape[1], 1.2 + 0.32 * len(table))
    figure, ax = plt.subplots(figsize=size)
    best = table.max()
    sns.heatmap(
        table / best.abs().clip(lower=1),
        annot=table.round(0) + 0.0,
        fmt=".0f",
        cmap="crest",
        cbar=False,
        ax=ax,
        vmin=0,
        vmax=1,
    )
    ax.grid(visible=False)
    ax.set(xlabel="", ylabel="", title="mean score, last checkpoint; color: share of the best of the column")
    ax.tick_params(axis="x", rotation=35)
    for label in ax.get_xticklabels():
        label.set_ha("right")
    return figure


def intervals(summary: pd.DataFrame, tasks: int, title: str = "") -> Figure:
    """Interquartile mean of each method with its 95% interval, best on top."""
    figure, ax = plt.subplots(figsize=(6, 0.32 * len(summary) + 1))
    rows = summary.iloc[::-1]
    error = np.abs(rows[["low", "high"]].to_numpy().T - rows["iqm"].to_numpy())
    colors = [COLORS[m] for m in rows["method"]]
    ax.barh(rows["method"], rows["iqm"], xerr=error, color=colors, error_kw={"capsize": 3})
    ax.set(xlabel=f"interquartile mean score over {tasks} tasks x seeds, 95% stratified bootstrap", title=title)
    return figure


def profiles(scores: Mapping[str, statistics.Scores]) -> Figure:
    """Share of runs above each score, one line a method."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6))
    everything = np.concatenate([np.concatenate(runs) for runs in scores.values()])
    thresholds = np.linspace(min(0.0, everything.min()), everything.max(), 201)
    for method, runs in scores.items():
        ax.plot(thresholds, statistics.performance_profile(runs, thresholds), label=method, color=COLORS[method])
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
        ax.set(title=f"P(better than {other})", xlim=(0, 1), yticks=range(len(rows)))
        ax.set_yticklabels([row[0] for row in reversed(rows)] if ax is axes[0][0] or other in scores else [])
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


def searched(rows: pd.DataFrame) -> Figure:
    """Mean score over the searched number with the range of the seeds, a line a method, a panel a task.

    Columns task, method, seed, score and times: the number as a multiple of its default.
    """
    names = list(dict.fromkeys(rows["task"]))
    figure, axes = panels(len(names), 3.4 + 1.8 / min(len(names), 3), 3.2, most=3)
    for ax, task in zip(axes, names, strict=True):
        part = rows[rows["task"] == task]
        sns.lineplot(
            part, x="times", y="score", hue="method", palette=COLORS, marker="o", errorbar=("pi", 100), ax=ax,
            legend=ax is axes[-1], err_kws={"alpha": 0.08},
        )  # fmt: skip
        ax.set(title=task, xlabel="times the default", xscale="log")
        ax.set_xticks(TIMES, [f"{x:g}" for x in TIMES])
        ax.minorticks_off()
    sns.move_legend(axes[-1], "center left", bbox_to_anchor=(1, 0.5), title="")
    return figure
