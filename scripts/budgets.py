"""runs/budgets.csv: what the stages of evaluated runs reached with their steps, mean over seeds.

python scripts/budgets.py [--runs-dir runs] [--profile study]: rows of these runs take the place of older ones of theirs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from aepo import files
from aepo.data import datasets, tasks
from aepo.learners import discount
from aepo.methods import DATASET
from aepo.study import results, runs

COLUMNS = ["task", "profile", "stage", "steps", "metric", "value"]


def measured(folder: Path) -> Iterator[tuple[str, int, str, float]]:
    """Stage, steps, metric and value of one run folder."""
    profile, name = folder.parent.name, folder.name
    stages = runs.read_manifest(folder)["stages"]
    returns = results.read_returns(folder / "returns.csv")
    scores = returns[returns["variant"] == ""].groupby("method")["score"].mean()
    chosen = stages["critic"]["settings"]["discount"] if "critic" in stages else None
    if chosen:
        task = tasks.get(name)
        yield "critic", stages["critic"]["steps"], "discount", chosen
        agreement = discount.agreements(datasets.load(task, profile), task)
        yield "critic", stages["critic"]["steps"], "agreement", agreement.get(chosen, float("nan"))
    for method, score in scores.items():
        if method in (DATASET, "bc", "bc-low-noise"):
            yield "behavior", stages["behavior"]["steps"], f"score of {method}", score
    for stage, entry in stages.items():
        if entry["steps"] and "seconds" in entry:
            yield stage, entry["steps"], "seconds", entry["seconds"]
        if stage.startswith("energy-"):
            log = pd.read_parquet(folder / "metrics" / f"{stage}.parquet")
            yield stage, entry["steps"], "loss", log[log["step"] == log["step"].max()]["loss"].mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--profile", default="study")
    given = parser.parse_args()
    folders = sorted(path.parent for path in (runs.resolve(given.runs_dir) / given.profile).glob("*/returns.csv"))
    rows = []
    for folder in folders:
        try:
            rows += [(folder.name, given.profile, *row) for row in measured(folder)]
        except (files.StudyError, ValueError, KeyError) as error:
            print(f"{folder} is left out: {error}")
    found, path = pd.DataFrame(rows, columns=COLUMNS), files.project_root() / "runs" / "budgets.csv"
    if path.exists():
        before = pd.read_csv(path)
        same = before["task"].isin(found["task"]) & (before["profile"] == given.profile)
        found = pd.concat([before[~same], found], ignore_index=True)
    found = found.sort_values(["profile", "task"], kind="stable").round({"value": 4})
    with files.atomic_path(path) as temporary:
        found.to_csv(temporary, index=False)
    print(f"{path}: {len(found)} rows, {found['task'].nunique()} tasks")


if __name__ == "__main__":
    main()
