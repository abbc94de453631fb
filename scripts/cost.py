"""Score against what it costs, from tracked tables: figures/<profile>/study/cost.png.

python scripts/cost.py [--profile study]: milliseconds of an action from runs/actions.csv (`python -m benchmarks.actions RUN
--output runs/actions.csv`), seconds of a training of the seeds side by side from runs/budgets.csv, scores from results.csv.
"""

import argparse

import matplotlib.pyplot as plt
import pandas as pd

from aepo import files
from aepo.methods import METHODS
from aepo.study import figures, tables

MARKERS = "oDs^vP"  # of the methods of one kind, which have one hue

TRAINED = {  # the stages that a method with a policy of its own needs beside it
    "resampled": ["critic"],
    "weighted": ["behavior", "critic"],
    "flow": ["behavior", "critic"],
    "gaussian": ["critic"],
    "deterministic": [],
    "diffusion-q": [],
}


def training_seconds(budgets: pd.DataFrame, name: str) -> float:
    """Seconds of all stages that a method is made of: the mean of the tasks that have them."""
    method, seconds = METHODS[name], budgets[budgets["metric"] == "seconds"]
    cloning = name in ("bc", "bc-low-noise")
    stages = TRAINED[method.policy] if method.policy else ["behavior"] if cloning else ["behavior", "critic"]
    own = f"policy-{'resampled' if method.policy == 'resampled' else name}"
    total = seconds[seconds["stage"].isin(stages)].groupby("task")["value"].sum()
    for start in [own] * bool(method.policy) + [f"energy-{name}"] * bool(method.energy):
        named = seconds["stage"].str.extract(rf"^{start}(-b[\d.]+|)(?:-round\d+)?$")[0].rename("beta")
        made = (
            seconds.groupby(["task", named])["value"].sum().groupby("task").mean()
        )  # of several betas that were tried
        total = made if not stages else (total + made).dropna()
    return total.mean()


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="study")
    profile, root = parser.parse_args().profile, files.project_root()
    scores = tables.seed_scores(tables.main_rows(root / "runs" / "results.csv", profile))
    methods, tasks = tables.comparable_groups(scores)[0]
    table = tables.summary_table(scores, methods, tasks).set_index("method")
    budgets = pd.read_csv(root / "runs" / "budgets.csv")
    table["training"] = [training_seconds(budgets[budgets["profile"] == profile], name) for name in table.index]
    table["action"] = pd.read_csv(root / "runs" / "actions.csv").set_index("method")["ms_60"]
    figures.use_style()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    texts = {
        "action": "milliseconds of an action in 60 states, one core",
        "training": "seconds of a training of three seeds",
    }
    shape = {method: MARKERS[i] for methods in figures.KINDS.values() for i, method in enumerate(methods)}
    for ax, (name, text) in zip(axes, texts.items(), strict=True):
        for method, row in table.iterrows():
            error = [[row["iqm"] - row["iqm_low"]], [row["iqm_high"] - row["iqm"]]]
            look = {"fmt": shape[method], "color": figures.COLORS[method], "capsize": 2, "label": method}
            ax.errorbar(row[name], row["iqm"], yerr=error, **look)
        ax.set(xscale="log", xlabel=text)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0].set(ylabel=f"interquartile mean score, {len(tasks)} tasks", title="score against the cost of an action")
    axes[1].set(title="score against the cost of a training")
    print(figures.save(figure, root / "figures" / profile / "study" / "cost.png"))
    print(table[["iqm", "action", "training"]].round(1).to_string())


if __name__ == "__main__":
    main()
