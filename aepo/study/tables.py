"""The study over tasks: tables and figures drawn from results.csv alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from aepo.files import StudyError
from aepo.methods import DATASET, NAMES
from aepo.searched import FAMILIES, LOOKED_AT
from aepo.study import ablations, statistics, study_figures
from aepo.study.figures import save, use_style
from aepo.study.results import read_results

AGAINST = ("qgpo", "iql", "best-of-n")
TARGETS = (
    "direct", "aepo-direct-1", "aepo-direct", "aepo-direct-softmax", "mean-q", "exp-q", "aepo", "aepo-gated",
    "aepo-unclamped", "aepo-2", "aepo-cubature", "aepo-support", "aepo-support-softmax", "qgpo", "qgpo-softmax",
)  # fmt: skip
RELATIVE = ("1/4", "1/2", "1", "2", "4")  # ablations.TIMES
MOST_PROFILES, ALWAYS = 6, ("aepo", "bc")  # lines of the performance profiles: the best, and these
PUBLISHED = Path(__file__).with_name("published.csv")


def read(path: Path, profile: str) -> pd.DataFrame:
    """Last checkpoints of a profile in results.csv, without ablations and curves; StudyError where there are none."""
    if not path.exists():
        raise StudyError(f"{path} is missing: run `make reproduce` or `aepo evaluate` first")
    rows = read_results(path)
    main = rows[(rows["profile"] == profile) & (rows["variant"] == "") & (rows["checkpoint"] == "last")]
    if main.empty:
        raise StudyError(
            f"{path} holds no results of profile {profile!r}: run `make reproduce PROFILE={profile}` first"
        )
    return main


def read_best(path: Path, profile: str) -> pd.DataFrame:
    """The rows of `read` that were picked among snapshots of an energy network; none where a profile keeps none."""
    rows = read_results(path)
    return rows[(rows["profile"] == profile) & (rows["variant"] == "") & (rows["checkpoint"] != "last")]


def published() -> pd.DataFrame:
    """Scores that papers and public benchmarks report on D4RL: method, task, score, std, source."""
    return pd.read_csv(PUBLISHED)


def ablation_rows(rows: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Mean score of each seed under every variant of `ablations`, with the same methods as evaluated beside them.

    Columns question, task, method, variant ("as evaluated": none), seed, score; tasks without variants are left out.
    """
    rows = rows[(rows["profile"] == profile) & (rows["checkpoint"] == "last")]
    found = []
    for question in ablations.QUESTIONS:
        names = [v.name for v in ablations.VARIANTS if v.question == question]
        part = rows[rows["variant"].isin(names)]
        pairs = set(zip(part["task"], part["method"], strict=True))
        beside = np.array([pair in pairs for pair in zip(rows["task"], rows["method"], strict=True)], dtype=bool)
        own = rows[(rows["variant"] == "") & beside]
        part = pd.concat([own.assign(variant="as evaluated"), part]).assign(question=question)
        found.append(
            part.groupby(["question", "task", "method", "variant", "seed"], as_index=False, sort=False)["score"].mean()
        )
    return pd.concat(found, ignore_index=True)


def search(rows: pd.DataFrame) -> pd.DataFrame:
    """What the search of one number a method saw: mean score over the searched tasks of a family at each of the five values.

    rows: those of `ablation_rows`. Columns family, method, number, tasks and RELATIVE, a quarter to four times the default.
    """
    found = []
    for family, chosen in FAMILIES.items():
        for method in dict.fromkeys(rows["method"]):
            searched = [v for v in ablations.VARIANTS if v.number and method in v.methods]
            values = [v.name for v in searched]
            part = rows[(rows["method"] == method) & rows["task"].isin(chosen) & rows["variant"].isin(values)]
            wide = part.groupby(["task", "variant"])["score"].mean().unstack("variant").reindex(columns=values).dropna()
            if values and len(wide):
                scores = dict(zip(RELATIVE, wide.mean(), strict=True))
                number = searched[0].number
                found.append({"family": family, "method": method, "number": number, "tasks": len(wide)} | scores)
    return pd.DataFrame(found, columns=["family", "method", "number", "tasks", *RELATIVE])


def format_search(frame: pd.DataFrame) -> str:
    """`search` for people, the best value of a row in bold."""
    rows = []
    for row in frame.to_dict("records"):
        best = max(row[name] for name in RELATIVE)
        shown = [f"**{row[name]:.1f}**" if row[name] == best else f"{row[name]:.1f}" for name in RELATIVE]
        rows.append([f"{row['family']}, {row['tasks']}", f"`{row['method']}`", row["number"], *shown])
    return markdown(["searched on", "method", "number", *RELATIVE], rows)


def seed_scores(main: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each seed over its episodes: columns task, method, seed, score; tasks without scores are left out."""
    return main.groupby(["task", "method", "seed"], as_index=False)["score"].mean().dropna()


def strata(scores: pd.DataFrame, method: str, chosen: list[str]) -> list[np.ndarray]:
    """A method's scores by task, each an array `(seeds,)`."""
    own = scores[scores["method"] == method]
    return [own[own["task"] == task]["score"].to_numpy() for task in chosen]


def common_tasks(scores: pd.DataFrame, methods: list[str]) -> list[str]:
    """The tasks on which every one of the methods has a score."""
    by_task = scores.groupby("task")["method"].agg(set)
    return [task for task in by_task.index if set(methods) <= by_task[task]]


def groups(scores: pd.DataFrame) -> list[tuple[list[str], list[str]]]:
    """Sets of methods with the tasks they share, so that no mean compares different tasks.

    First the methods that every task has; then, where there are more, all methods on the tasks that have them all. None
    where no task has a score.
    """
    present = [m for m in NAMES if m != DATASET and m in set(scores["method"])]
    count = scores.groupby("method")["task"].nunique()
    everywhere = [m for m in present if count[m] == scores["task"].nunique()]
    found = [(everywhere, common_tasks(scores, everywhere))] if everywhere else []
    if len(everywhere) < len(present):
        most = [m for m in present if count[m] >= max(2, sorted(count[present])[len(present) // 2])] or present
        for chosen in (most, present):
            shared = common_tasks(scores, chosen)
            if shared and (chosen, shared) not in found and chosen != everywhere:
                found.append((chosen, shared))
    return found


def unseen(chosen: list[str]) -> list[str]:
    """Those of some tasks that were not looked at while settings were chosen; empty where that is none or all of them."""
    found = [task for task in chosen if task not in LOOKED_AT]
    return found if len(found) < len(chosen) else []


def table(scores: pd.DataFrame) -> pd.DataFrame:
    """Methods by tasks: mean score over seeds; empty where a method was not run."""
    wide = scores.groupby(["method", "task"])["score"].mean().unstack("task")
    return wide.reindex([m for m in NAMES if m in wide.index])


def summary(scores: pd.DataFrame, methods: list[str], chosen: list[str]) -> pd.DataFrame:
    """One row a method on tasks that all of them have: IQM with interval, mean, mean rank, P(better than) AGAINST.

    Intervals are columns low and high, p_<other>_low and p_<other>_high.
    """
    runs = {m: strata(scores, m, chosen) for m in methods}
    ranks = statistics.mean_ranks(np.array([[task.mean() for task in runs[m]] for m in methods]))
    rows = []
    for method, rank in zip(methods, ranks, strict=True):
        value, low, high = statistics.aggregate(runs[method])
        row = {"method": method, "iqm": value, "low": low, "high": high}
        row |= {"mean": float(np.mean([task.mean() for task in runs[method]])), "rank": float(rank)}
        for other in AGAINST:
            known = other in methods and other != method
            chance = statistics.improvement(runs[method], runs[other]) if known else (np.nan,) * 3
            row |= dict(zip((f"p_{other}", f"p_{other}_low", f"p_{other}_high"), chance, strict=True))
        rows.append(row)
    return pd.DataFrame(rows).sort_values("iqm", ascending=False, ignore_index=True)


def kind(task: str) -> str:
    """Mazes, or robots by what recorded their data: `robots, mixed` of local-hopper-mixed."""
    return "mazes" if "maze" in task else f"robots, {task.removeprefix('local-').partition('-')[2] or 'other'}"


def by_kind(scores: pd.DataFrame, methods: list[str], chosen: list[str]) -> pd.DataFrame:
    """Methods, best on top, by kinds of the tasks that all of them have: interquartile means over tasks x seeds."""
    found = {"all": chosen}
    for task in chosen:
        found[kind(task)] = [*found.get(kind(task), []), task]
    columns = {
        f"{name} ({len(part)})": [
            statistics.interquartile_mean(np.concatenate(strata(scores, method, part))) for method in methods
        ]
        for name, part in found.items()
    }
    return pd.DataFrame(columns, index=pd.Index(methods, name="method")).sort_values(
        f"all ({len(chosen)})", ascending=False
    )


def format_by_kind(frame: pd.DataFrame) -> str:
    """`by_kind` for people, the best of a column in bold."""
    rows = [
        [
            f"`{method}`",
            *(f"**{v:.1f}**" if v == best else f"{v:.1f}" for v, best in zip(row, frame.max(), strict=True)),
        ]
        for method, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    return markdown(["IQM by kind of task", *frame.columns], rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, readable as it is."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def format_table(scores: pd.DataFrame, methods: Sequence[str] = NAMES) -> str:
    """Tasks by methods: mean score over seeds, the best of a task's methods (whole numbers) in bold, a dash where not run.

    `methods`: those to show, on the tasks that have any of them. A star marks the tasks that were looked at while settings
    were chosen.
    """
    wide = table(scores)
    best = wide.drop(index=DATASET, errors="ignore").max()
    wide = wide[wide.index.isin(methods)].dropna(axis="columns", how="all")

    def cell(value: float, task: str) -> str:
        if np.isnan(value):
            return "-"
        return f"**{round(value)}**" if round(value) == round(best[task]) else f"{round(value)}"

    cells = ([cell(wide.loc[method, task], task) for method in wide.index] for task in wide.columns)
    names = (f"`{task}` *" if task in LOOKED_AT else f"`{task}`" for task in wide.columns)
    rows = [[name, *values] for name, values in zip(names, cells, strict=True)]
    return markdown(["task", *(f"`{method}`" for method in wide.index)], rows)


def format_summary(frame: pd.DataFrame) -> str:
    """`summary` for people."""
    rows = []
    for row in frame.to_dict("records"):
        chances = [[row[f"p_{other}{end}"] for end in ("", "_low", "_high")] for other in AGAINST]
        shown = [f"{row['iqm']:.1f} [{row['low']:.1f}, {row['high']:.1f}]", f"{row['mean']:.1f}", f"{row['rank']:.1f}"]
        rows.append(
            [
                f"`{row['method']}`",
                *shown,
                *("-" if np.isnan(p) else f"{p:.2f} [{a:.2f}, {b:.2f}]" for p, a, b in chances),
            ]
        )
    return markdown(["method", "IQM [95%]", "mean", "mean rank", *(f"P(> `{other}`)" for other in AGAINST)], rows)


def missing(scores: pd.DataFrame) -> list[str]:
    """What was not run: a sentence a method that some task of the study lacks."""
    everything = sorted(scores["task"].unique())
    lines = []
    for method in (m for m in NAMES if m in set(scores["method"])):
        lacking = sorted(set(everything) - set(scores[scores["method"] == method]["task"]))
        if lacking:
            lines.append(f"{method}: not run on {', '.join(lacking)}")
    never = [m for m in NAMES if m != DATASET and m not in set(scores["method"])]
    return lines + [f"not run at all: {', '.join(never)}"] * bool(never)


def draw(main: pd.DataFrame, folder: Path) -> list[Path]:
    """All figures of the study into `folder`: score by task, interquartile means, performance profiles, P(better).

    None where no task has a score.
    """
    use_style()
    scores = seed_scores(main)
    if scores.empty:
        return []
    made = {"study_scores": study_figures.by_task(table(scores))}
    for name, (methods, chosen) in zip(("", "_more", "_all"), groups(scores), strict=False):
        if len(methods) < 2:
            continue
        frame = summary(scores, methods, chosen)
        made[f"study_iqm{name}"] = study_figures.intervals(frame, len(chosen))
        if not name:
            if apart := unseen(chosen):
                alone, title = summary(scores, methods, apart), "tasks not looked at while settings were chosen"
                made["study_iqm_unseen"] = study_figures.intervals(alone, len(apart), title)
            runs = {m: strata(scores, m, chosen) for m in methods}
            shown = [*frame["method"][:MOST_PROFILES], *(m for m in ALWAYS if m in methods)]
            made["study_profiles"] = study_figures.profiles({m: runs[m] for m in dict.fromkeys(shown)})
            against = [m for m in AGAINST if m in methods]
            if against:
                made["study_improvement"] = study_figures.improvements(runs, against)
    return _save_all(made, folder, "08")


def ablation_figure(rows: pd.DataFrame, question: str) -> Figure:
    """The figure of a question of `ablation_rows`: lines over the searched number, or a point a variant."""
    part = rows[rows["question"] == question].sort_values("method", kind="stable")
    times = part["variant"].map({v.name: v.times for v in ablations.VARIANTS}).astype(float)
    if times.notna().any():
        return study_figures.searched(part.assign(times=times)[times.notna()])
    return study_figures.ablation(part.assign(variant=part["method"] + ": " + part["variant"]))


def draw_ablations(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """One figure a question of `ablation_rows`, into `folder`; none where there are no variants."""
    made = {question: ablation_figure(rows, question) for question in rows["question"].unique()}
    return _save_all(made, folder, "11")


def _save_all(made: Mapping[str, Figure], folder: Path, number: str) -> list[Path]:
    """Save figures as <number>_<name>.png; earlier ones of that number that are not among them go."""
    drawn = [save(figure, folder / f"{number}_{name}.png") for name, figure in made.items()]
    for old in set(folder.glob(f"{number}_*.png")) - {*drawn}:
        old.unlink()
    return drawn


def report(main: pd.DataFrame) -> str:
    """The tables as text: score by task, then one summary a group of methods with the tasks that they share.

    Methods that only some tasks have come in a table of their own.
    """
    scores = seed_scores(main)
    if scores.empty:
        return f"no scores: {', '.join(sorted(main['task'].unique()))} without reference returns"
    together = groups(scores)
    everywhere = [DATASET, *(together[0][0] if together else ())]
    parts = [format_table(scores, everywhere)]
    if others := [m for m in NAMES if m in set(scores["method"]) and m not in everywhere]:
        parts.append(format_table(scores, others))
    for i, (methods, chosen) in enumerate(together):
        parts.append(f"{len(methods)} methods on {len(chosen)} tasks: {', '.join(chosen)}")
        parts.append(format_summary(summary(scores, methods, chosen)))
        if not i and (apart := unseen(chosen)):
            parts.append(f"The same on the {len(apart)} of them that were not looked at while settings were chosen:")
            parts.append(format_summary(summary(scores, methods, apart)))
        if not i and len({kind(task) for task in chosen}) > 1:
            parts.append(format_by_kind(by_kind(scores, methods, chosen)))
    return "\n\n".join([*parts, "\n".join(missing(scores))])
