"""What is printed of a study's runs at their end: tables of returns and scores, what is missing, where files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from aepo.files import short
from aepo.methods import DATASET
from aepo.study.results import read_returns
from aepo.study.runs import Run
from aepo.study.tables import readable_task_table, task_table


def table(folder: Path) -> str:
    """The table of results of one run: last checkpoint, means over seeds and episodes, 95% bootstrap intervals."""
    shown = readable_task_table(task_table(read_returns(folder / "returns.csv")))
    run = f"{folder.name} ({folder.parent.name})"
    head = f"{run}: last checkpoint, mean and 95% bootstrap interval over seeds and episodes"
    return f"\n{head}\n{shown.to_string(index=False)}\n"


def print_figures(paths: Sequence[Path]) -> None:
    """Where figures are, one a line."""
    print("Figures:", *map(short, paths), sep="\n  ")


def print_study(study: Sequence[Run]) -> None:
    """The table of one run, or tasks down and methods across; what is missing, and where the files are."""
    first = study[0]
    if len(study) == 1:
        print(table(first.folder))
    means, missing = {}, []
    for run in study:
        path = run.folder / "returns.csv"
        rows = read_returns(path) if path.exists() else pd.DataFrame(columns=["method", "variant", "return", "score"])
        rows = rows[(rows["variant"] == "") & (rows["method"] != DATASET)]
        mean = rows.groupby("method")[["return", "score"]].mean()
        means[run.task.name] = mean["score"].fillna(mean["return"]).map("{:.1f}".format)
        if lacking := [m for m in run.methods if m not in mean.index and (run.task.env_id or not path.exists())]:
            missing.append(f"missing: {run.task.name}: {', '.join(lacking)}")
    if len(study) > 1:
        print(f"\n{first.profile_name}: mean score of the last checkpoint (mean return where a task has no score)")
        scores = pd.DataFrame(means, dtype=object).T.reindex(columns=first.methods).fillna("-")
        print(scores.to_string(), end="\n\n")
    print(*missing, sep="\n", end="\n" * bool(missing))
    if len(study) == 1:
        print_figures(sorted(first.figures.glob("*.png")))
        print(f"Executed notebooks, networks, manifest, all episodes (returns.csv): {short(first.folder)}")
    else:
        networks, figures = short(first.folder.parent), short(first.figures.parent)
        print(f"Executed notebooks, networks, manifests: {networks}   figures: {figures}")
