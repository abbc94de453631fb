"""How wrong a shift network is where its own policy goes: trained at recorded states alone, and beyond the data.

python scripts/visited.py runs/quick/maze2d-umaze [--output figures/quick/study] [--table runs/visited.csv]

For runs that evaluated `aepo-net` and the ablation `beyond` (`aepo ablations --questions beyond`). The error is
|v - shift|^2 over |shift|^2 against the closed form, both summed over noisy actions of the policy's own law.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from aepo import files
from aepo.core import losses
from aepo.core.models import VP, ClosedShift, gaussian_posterior
from aepo.core.networks import generator
from aepo.data import datasets, tasks
from aepo.learners.actor import Acting
from aepo.study import figures, runs, views
from aepo.study.policy import load_actor, load_networks

METHOD = "aepo-net"
FOLDERS = {"recorded states alone": "ablations/not-beyond", "beyond the data": "."}
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
STATES = 2_000


@torch.no_grad()
def squares(folder: Path, states: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """|v - shift|^2 and |shift|^2 `(S, N)` at raw states `(S, N, n)`, summed over TIMES, of the networks in a folder."""
    entry = runs.read_manifest(folder)["evaluation"][METHOD]
    actor = load_actor(folder, METHOD, entry["seeds"], Acting.of(entry), "cpu")
    behavior, net = cast(Any, actor.behavior), cast(Any, actor.guide)
    exact = ClosedShift("cubature", behavior, load_networks(folder, "critic", entry["seeds"], "cpu"), entry["beta"])
    here = behavior.standardize(states)
    shape = (*here.shape[:2], behavior.low.shape[-1])
    random = generator(0, "visited")
    clean = actor.propose(here, torch.randn(*shape[:2], actor.draws, shape[-1], generator=random))
    wrong, size = np.zeros(shape[:2]), np.zeros(shape[:2])
    for t in torch.tensor(TIMES):
        noisy = losses.diffuse(clean, torch.randn(shape, generator=random), t.expand(shape[:2]), VP)
        mean, _ = gaussian_posterior(behavior, here, noisy, t)
        target = exact.shift(here, noisy, t, mean)
        wrong += (net.shift(here, noisy, t, mean) - target).square().sum(-1).numpy()
        size += target.square().sum(-1).numpy()
    return wrong, size


def visited(folder: Path, count: int) -> torch.Tensor:
    """`count` states `(S, count, n)` of the episodes that an evaluation kept, at equal distances."""
    kept = (
        files.load_tensors(folder / "evaluation" / f"{METHOD}.safetensors")[0]["states"].transpose(0, 1).flatten(1, 2)
    )
    rows = [row[row.isfinite().all(-1)] for row in kept]
    return torch.stack([row[torch.linspace(0, len(row) - 1, count).long()] for row in rows])


def compare(folder: Path, output: Path) -> pd.DataFrame:
    """A row a network and kind of states: the relative error. Draws the error over the visited states."""
    task = tasks.get(folder.name)
    profile = folder.parent.name
    data = datasets.load(task, profile)
    for name in FOLDERS.values():
        if METHOD not in runs.read_manifest(folder / name).get("evaluation", {}):
            raise files.StudyError(f"{folder / name} has no {METHOD}: run `aepo ablations --questions beyond` first")
    at = torch.linspace(0, len(data) - 1, STATES).long()
    shown, rows = views.view(task, data), []
    figure, axes = figures.panels(len(FOLDERS), 3.6, 3.2, sharex=True, sharey=True)
    for ax, (label, name) in zip(axes, FOLDERS.items(), strict=True):
        own = visited(folder / name, STATES)
        wrong, size = squares(folder / name, own)
        error = {"visited": wrong.sum() / size.sum()}
        recorded = squares(folder / name, data.state[at].expand(len(own), -1, -1))
        error["recorded"] = recorded[0].sum() / recorded[1].sum()
        rows += [[task.name, profile, label, where, value] for where, value in error.items()]
        x, y = shown.project(own.numpy()).reshape(-1, 2).T
        look = {"C": (wrong / size.mean()).ravel(), "gridsize": 30, "norm": "log", "vmin": 0.01, "vmax": 10}
        drawn = ax.hexbin(x, y, cmap="cividis", mincnt=1, zorder=2, **look)
        shown.draw(ax)
        said = f"{error['visited']:.2g} at visited, {error['recorded']:.2g} at recorded states"
        ax.set_title(f"trained at {label}:\n{said}" if "alone" in label else f"trained {label}:\n{said}")
    figure.colorbar(drawn, ax=axes, label="squared error / mean squared shift")
    figure.suptitle(f"Error of the shift network where its policy goes, {task.name}")
    figures.save(figure, output / f"visited-{task.name}.png")
    return pd.DataFrame(rows, columns=["task", "profile", "trained", "states", "relative_error"])


def main() -> None:
    """Compare on each run, print the table, add it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders runs/<profile>/<task>")
    parser.add_argument("--output", type=Path, default=Path("figures/quick/study"))
    parser.add_argument("--table", type=Path, help="CSV file whose rows of these runs are written anew")
    given = parser.parse_args()
    figures.use_style()
    made = [compare(runs.find_folder(folder), given.output) for folder in given.runs]
    table = pd.concat(made, ignore_index=True)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    if given.table:
        if given.table.exists():
            both = pd.concat([pd.read_csv(given.table), table])
            table = both.drop_duplicates(["task", "profile", "trained", "states"], keep="last")
        with files.atomic_path(given.table) as temporary:
            table.to_csv(temporary, index=False, float_format="%.4g")


if __name__ == "__main__":
    try:
        main()
    except files.StudyError as error:
        raise SystemExit(f"visited: {error}") from None
