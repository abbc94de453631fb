"""How far the recommended method's lead hangs on which tasks it is counted: `python scripts/hangs_on.py`.

On tasks not looked at while settings were chosen, over each method: the lead in IQM, its least without one of them, and
its 95% interval with tasks drawn anew, and seeds within each, where docs/results.md draws seeds alone.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from aepo.study import statistics, tables

RESULTS = Path(__file__).resolve().parents[1] / "runs" / "results.csv"
DRAWS = 4_000


def leads(scores: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """A row a method that has all those tasks: `lead`, `least` without the task `without`, `low` and `high`."""
    wide = tables.score_matrix(scores)
    tasks, rng = tables.not_looked_at(list(wide.columns)), np.random.default_rng(0)
    methods = [method for method in wide[tasks].dropna().index if method != "dataset"]
    seeds = np.array([np.stack(tables.scores_by_task(scores, method, tasks)) for method in methods])
    picked = rng.integers(len(tasks), size=(draws, len(tasks)))
    drawn = seeds[:, picked[..., None], rng.integers(seeds.shape[2], size=(draws, len(tasks), seeds.shape[2]))]
    best, iqm, rows = methods.index(tables.claims()["recommended"]), statistics.interquartile_mean, []
    for i, method in enumerate(methods):
        without = [iqm(np.delete(seeds[best], k, 0)) - iqm(np.delete(seeds[i], k, 0)) for k in range(len(tasks))]
        anew = [iqm(own) - iqm(other) for own, other in zip(drawn[best], drawn[i], strict=True)]
        row = {"method": method, "lead": iqm(seeds[best]) - iqm(seeds[i]), "least": min(without)}
        low, high = np.quantile(anew, (0.025, 0.975))
        row |= {"without": tasks[int(np.argmin(without))], "low": low, "high": high}
        rows += [row] if i != best else []
    return pd.DataFrame(rows).sort_values("lead", ignore_index=True)


if __name__ == "__main__":
    print(leads(tables.seed_scores(tables.main_rows(RESULTS, "study"))).round(1).to_string(index=False))
