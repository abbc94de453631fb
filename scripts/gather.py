"""Take rows of another folder of runs into the tracked runs/results.csv: `python scripts/gather.py FOLDER/results.csv`.

Of a task that has all methods of --methods its rows of methods and of today's ablations replace those of the same
profile, task, method and variant; of recorded behavior at most --recorded episodes a task, at equal distances.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from aepo import files, methods
from aepo.study import ablations, results

ROOT = Path(__file__).resolve().parents[1]


def gathered(
    rows: pd.DataFrame, before: pd.DataFrame, profile: str, needed: list[str], most: int = 100
) -> pd.DataFrame:
    """`before` with what `rows` has of a profile; a task without all the needed methods stays as it was."""
    known = {(variant.name, method) for variant in ablations.VARIANTS for method in variant.methods}
    known |= {("", method) for method in (*methods.METHODS, methods.DATASET)}
    rows = rows[rows["profile"] == profile]
    played = rows[rows["variant"] == ""].groupby("task")["method"].agg(set)
    ready = {task for task, names in played.items() if set(needed) <= names}
    fresh = pd.MultiIndex.from_frame(rows[["variant", "method"]]).isin(known)
    rows = rows[fresh & rows["task"].isin(ready)]
    kept = [rows[rows["method"] != methods.DATASET]]
    for _, recorded in rows[rows["method"] == methods.DATASET].groupby("task"):
        kept.append(recorded.iloc[np.unique(np.linspace(0, len(recorded) - 1, most).round().astype(int))])
    rows = pd.concat(kept)
    key = results.KEY
    other = before[~pd.MultiIndex.from_frame(before[key]).isin(pd.MultiIndex.from_frame(rows[key]))]
    return pd.concat([other, rows], ignore_index=True).sort_values(key, kind="stable", ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a results.csv that `aepo evaluate` wrote")
    parser.add_argument("--profile", default="study")
    parser.add_argument("--methods", default="bc", help="methods that a task must have to be taken, with commas")
    parser.add_argument("--recorded", type=int, default=100)
    parser.add_argument("--into", type=Path, default=ROOT / "runs" / "results.csv")
    options = parser.parse_args()
    rows, before = results.read_results(options.source), results.read_results(options.into)
    after = gathered(rows, before, options.profile, options.methods.split(","), options.recorded)
    results.write(after, options.into)
    counts = after[(after["profile"] == options.profile) & (after["variant"] == "")].groupby("task")["method"].nunique()
    print(counts.to_string())


if __name__ == "__main__":
    try:
        main()
    except files.StudyError as error:
        raise SystemExit(f"error: {error}") from None
