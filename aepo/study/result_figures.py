"""Figures of results: of one task, and of the study with its variants, drawn from returns.csv or results.csv alone."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from aepo.methods import NAMES
from aepo.study import statistics, tables
from aepo.study.ablations import SEARCH, VARIANTS
from aepo.study.figures import COLORS, KINDS, panels, save, use_style

MOST_PROFILES, ALWAYS = 4, ("aepo-weighted", "bc")  # lines of the performance profiles: the best, and these


def bars(table: pd.DataFrame, name: str, height: float, **texts: str) -> Figure:
    """A bar a method of a column with its interval, the first on top, each `height` inches."""
    figure, ax = plt.subplots(figsize=(6, height * len(table) + 1))
    error = np.abs(table[[f"{name}_low", f"{name}_high"]].to_numpy().T - table[name].to_numpy())
    ax.barh(table["method"], table[name], xerr=error, color=table["method"].map(COLORS), error_kw={"capsize": 3})
    ax.invert_yaxis()
    ax.set(**texts)
    return figure


def guidance_curves(curves: pd.DataFrame) -> Figure:
    """Return over guidance scale, one panel a method; bands are 95% intervals over episodes."""
    methods = [m for m in NAMES if m in set(curves["method"])]
    figure, axes = panels(len(methods), 2.9, 2.4, sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        part = curves[curves["method"] == method]
        sns.lineplot(part, x="guidance_scale", y="return", marker="o", seed=0, ax=ax, color=COLORS[method])
        ax.set(title=method, xlabel="guidance scale", xscale="symlog")
        scales = sorted(part["guidance_scale"].unique())
        ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    return figure


def score_map(matrix: pd.DataFrame) -> Figure:
    """Mean score of every method on every task, `tables.score_matrix`; blank where it was not run."""
    figure, ax = plt.subplots(figsize=(1.6 + 0.85 * matrix.shape[1], 1.2 + 0.32 * len(matrix)))
    share, look = matrix / matrix.max().abs().clip(lower=1), {"cmap": "crest", "vmin": 0, "vmax": 1, "cbar": False}
    sns.heatmap(share, annot=matrix.round(0) + 0.0, fmt=".0f", ax=ax, **look)
    ax.grid(visible=False)
    ax.set(xlabel="", ylabel="", title="mean score, last checkpoint; color: share of the best of the column")
    ax.tick_params(axis="x", rotation=35)
    plt.setp(ax.get_xticklabels(), ha="right")
    return figure


def performance_profiles(scores: Mapping[str, statistics.Scores]) -> Figure:
    """Share of runs above each score, all tasks weighing the same, one line a method."""
    figure, ax = plt.subplots(figsize=(6.5, 3.6))
    everything = np.concatenate([task for runs in scores.values() for task in runs])
    thresholds = np.linspace(min(0.0, everything.min()), everything.max(), 201)
    for method, runs in scores.items():
        above = np.mean([(task[:, None] > thresholds).mean(0) for task in runs], 0)
        ax.plot(thresholds, above, label=method, color=COLORS[method])
    ax.set(xlabel="score", ylabel="share of runs above it", title="how many runs reach a score")
    ax.legend(bbox_to_anchor=(1, 0.5), loc="center left")
    return figure


def draw_study(main: pd.DataFrame, folder: Path) -> list[Path]:
    """Figures of `tables.main_rows` into `folder`: score by task, interquartile means, profiles; none without scores."""
    use_style()
    scores = tables.seed_scores(main)
    if scores.empty:
        return []
    made = {"study_scores": score_map(tables.score_matrix(scores))}
    groups = dict(zip(("study_iqm", "study_iqm_all"), tables.comparable_groups(scores), strict=False))
    if groups:
        methods, tasks = groups["study_iqm"]
        best = tables.summary_table(scores, methods, tasks)["method"][:MOST_PROFILES]
        shown = dict.fromkeys([*best, *(m for m in ALWAYS if m in methods)])
        made["study_profiles"] = performance_profiles({m: tables.scores_by_task(scores, m, tasks) for m in shown})
        groups["study_iqm_unseen"] = methods, tables.not_looked_at(tasks)
    for name, (methods, tasks) in groups.items():
        if tasks:
            label = f"interquartile mean score over {len(tasks)} tasks x seeds, 95% stratified bootstrap"
            table = tables.summary_table(scores, methods, tasks)
            first, second = (f"{method} {iqm:.0f}" for method, iqm in table[["method", "iqm"]].to_numpy()[:2])
            where = " on tasks not looked at while settings were chosen" if name == "study_iqm_unseen" else ""
            made[name] = bars(table, "iqm", 0.32, xlabel=label, title=f"{first}, {second}{where}")
    return _save_all(made, folder, "08")


def variant_figure(scores: pd.DataFrame, question: str) -> Figure:
    """The figure of a question of `tables.variant_scores`: lines over the searched number, or a point a variant."""
    part = scores[scores["question"] == question].sort_values("method", kind="stable")
    part = part.assign(times=part["variant"].map({v.name: v.times for v in VARIANTS}).astype(float))
    if question not in SEARCH and part["times"].notna().any():
        part = part.fillna({"times": 1.0})  # the run's own
    searched = part[part["times"].notna()]
    return _search_lines(searched) if len(searched) else _variant_points(part)


def draw_variants(scores: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure a question of `tables.variant_scores`, into `folder`; none where there are no variants."""
    made = {question: variant_figure(scores, question) for question in scores["question"].unique()}
    return _save_all(made, folder, "11")


def _variant_points(scores: pd.DataFrame) -> Figure:
    """Mean score of each variant with the range of its seeds, a panel a task."""
    scores = scores.assign(variant=scores["method"] + ": " + scores["variant"])
    tasks, variants = scores["task"].unique(), scores["variant"].unique()
    size = (3.4 * len(tasks) + 1.5, 0.34 * len(variants) + 1)
    figure, axes = plt.subplots(1, len(tasks), figsize=size, squeeze=False, sharey=True)
    look = {"errorbar": ("pi", 100), "linestyle": "none", "capsize": 0.2}
    for ax, task in zip(axes[0], tasks, strict=True):
        sns.pointplot(scores[scores["task"] == task], x="score", y="variant", order=variants, ax=ax, **look)
        ax.set(title=task, ylabel="")
    return figure


def _search_lines(scores: pd.DataFrame) -> Figure:
    """Mean score over the searched number as a multiple of its middle value: a row a kind of method, a panel a task."""
    kinds = [methods for methods in KINDS.values() if scores["method"].isin(methods).any()]
    tasks, times = scores["task"].unique(), sorted(scores["times"].unique())
    size = (2.5 * len(tasks) + 1.6, 1.9 * len(kinds) + 0.4)
    figure, axes = plt.subplots(len(kinds), len(tasks), figsize=size, squeeze=False, sharex=True, sharey="col")
    look = {"palette": COLORS, "style": "method", "markers": True, "dashes": False, "err_kws": {"alpha": 0.12}}
    for row, methods in zip(axes, kinds, strict=True):
        own = scores[scores["method"].isin(methods)]
        for ax, task in zip(row, tasks, strict=True):
            part, order = own[own["task"] == task], [m for m in methods if m in set(own["method"])]
            how = {"hue_order": order, "style_order": order, "errorbar": ("pi", 100), "legend": ax is row[-1]}
            sns.lineplot(part, x="times", y="score", hue="method", ax=ax, **look, **how)
            ax.set(title=task if methods is kinds[0] else "", ylabel="score" if ax is row[0] else "")
            ax.set_xlabel("times the middle value" if methods is kinds[-1] else "")
            ax.set_xticks(times, [f"{value:g}" for value in times])
        sns.move_legend(row[-1], "center left", bbox_to_anchor=(1, 0.5), title="")
    return figure


def _save_all(made: Mapping[str, Figure], folder: Path, number: str) -> list[Path]:
    """Save figures as <number>_<name>.png; earlier ones of that number that are not among them go."""
    drawn = [save(figure, folder / f"{number}_{name}.png") for name, figure in made.items()]
    for old in set(folder.glob(f"{number}_*.png")) - {*drawn}:
        old.unlink()
    return drawn
