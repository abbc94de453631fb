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


def print_table(folder: Path) -> None:
    """The table of results of one run: last checkpoint, means over seeds and episodes, 95% bootstrap intervals."""
    table = readable_task_table(task_table(read_returns(folder / "returns.csv")))
    run = f"{folder.name} ({folder.parent.name})"
    print(f"\n{run}: last checkpoint, mean and 95% bootstrap interval over seeds and episodes")
    print(table.to_string(index=False), end="\n\n")


def print_run(run: Run) -> None:
    """The table of one run, and where its files are."""
    print_table(run.folder)
    _print_missing([run])
    print_figures(sorted(run.figures.glob("*.png")))
    networks, episodes = short(run.folder), short(run.folder / "returns.csv")
    print(f"Executed notebooks, networks, manifest: {networks}   all episodes: {episodes}")


def print_figures(paths: Sequence[Path]) -> None:
    """Where figures are, one a line."""
    print("Figures:")
    for path in paths:
        print(f"  {short(path)}")


def print_study(study: Sequence[Run]) -> None:
    """Tasks down, methods across: mean score of the last checkpoint, or mean return without scores; `-` where missing."""
    first = study[0]
    rows = {run.task.name: {m: f"{mean:.1f}" for m, mean in _means(run).items()} for run in study}
    table = pd.DataFrame.from_dict(rows, orient="index").reindex([*rows]).reindex(columns=first.methods).fillna("-")
    print(f"\n{first.profile_name}: mean score of the last checkpoint (mean return where a task has no score)")
    print(table.to_string(), end="\n\n")
    _print_missing(study)
    networks, figures = short(first.folder.parent), short(first.figures.parent)
    print(f"Executed notebooks, networks, manifests: {networks}   figures: {figures}")


def _last_episodes(run: Run) -> pd.DataFrame:
    """The episodes of the run's last checkpoints; no rows where it has no returns.csv yet."""
    path = run.folder / "returns.csv"
    if not path.exists():
        return pd.DataFrame(columns=["method", "return", "score"])
    frame = read_returns(path)
    return frame[(frame["variant"] == "") & (frame["method"] != DATASET)]


def _means(run: Run) -> dict[str, float]:
    """Mean score of each method; mean return where the task has no score."""
    means = _last_episodes(run).groupby("method", sort=False)[["return", "score"]].mean()
    return means["score"].where(means["score"].notna(), means["return"]).to_dict()


def _print_missing(study: Sequence[Run]) -> None:
    """The methods that a run's returns.csv lacks; a train-only task whose run has ended lacks none."""
    for run in study:
        without = run.task.env_id is None and (run.folder / "returns.csv").exists()
        missing = [] if without else [m for m in run.methods if m not in set(_last_episodes(run)["method"])]
        if missing:
            print(f"missing: {run.task.name}: {', '.join(missing)}")
