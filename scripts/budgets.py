"""runs/budgets.csv: what the stages of evaluated runs reached with their steps, mean over seeds.

python scripts/budgets.py [--runs-dir runs] [--profile study]: rows of these runs take the place of older ones of theirs.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from aepo import files
from aepo.core import guidance
from aepo.core.losses import diffuse
from aepo.core.models import Behavior, Critic, advantage_at, gaussian_posterior
from aepo.core.schedule import VPSchedule
from aepo.data import datasets, tasks
from aepo.learners import discount
from aepo.learners.draws import Random
from aepo.learners.support import sample_actions
from aepo.methods import DATASET
from aepo.study import results, runs
from aepo.study.policy import load_networks

COLUMNS = ["task", "profile", "stage", "steps", "metric", "value"]
VP = VPSchedule()
STATES, REFERENCES, GROUP = 32, 1_024, 16  # the actions of a state: known, and in a batch of the contrastive loss
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def cross_entropy(scaled_q: Tensor, energy: Tensor) -> Tensor:
    """Contrastive loss of energies at M noised actions of a state under softmax(beta Q): both `(..., M)`, a mean."""
    return -(torch.softmax(scaled_q, -1) * torch.log_softmax(energy, -1)).sum(-1).mean()


@torch.no_grad()
def least_losses(behavior: Behavior, critic: Critic, state: Tensor, beta: float, t: Tensor, random: Random) -> Tensor:
    """Contrastive loss of the exact energy at each time, as near as estimates of it come: state `(S, P, n)` -> `(T,)`.

    E = log E[exp(beta Q) | a_t] over `REFERENCES` samples a state, by cubature of the posterior, or beta Q at its mean, each
    times the best of `PARTS`: a jagged Q is overestimated, and 0 is chance. The exact energy can only be better than these.
    """
    actions = sample_actions(behavior, state, REFERENCES + GROUP, 10, random)
    one = [slice(i, i + 1) for i in range(state.shape[1])]
    q = torch.cat([advantage_at(critic, state[:, i])(actions[:, i]) for i in one], 1)
    (known, group), (known_q, group_q) = actions.split([REFERENCES, GROUP], 2), q.split([REFERENCES, GROUP], 2)
    found = []
    for time in t:
        noise = random.normal(*group.shape[1:])[0]
        noisy = diffuse(group, noise, time.expand(group.shape[:-1]), VP)
        estimates = []
        for i in range(state.shape[1]):
            spread = known[:, i].unsqueeze(1).expand(-1, GROUP, -1, -1), noisy[:, i], time.expand(len(state), GROUP)
            own_q = known_q[:, i].unsqueeze(1).expand(-1, GROUP, -1)
            support = guidance.support_energy(own_q, *spread, VP, beta, check=False)
            here = state[:, i].unsqueeze(1).expand(-1, GROUP, -1)
            moments = gaussian_posterior(behavior, here, *spread[1:])
            q_function = advantage_at(critic, here)
            closed = [
                guidance.closed_form(kind, q_function, *moments, beta, None, -1.0, 1.0)
                for kind in ("cubature", "point")
            ]
            tried = [part * energy for energy in (support, *closed) for part in PARTS]
            estimates.append(torch.stack([cross_entropy(beta * group_q[:, i], energy) for energy in tried]))
        found.append(torch.stack(estimates).mean(0).min())
    return torch.stack(found)


def measured(folder: Path) -> Iterator[tuple[str, int, str, float]]:
    """Stage, steps, metric and value of one run folder."""
    profile, name = folder.parent.name, folder.name
    stages = runs.read_manifest(folder)["stages"]
    rows = results.read_results(folder.parents[1] / "results.csv")  # of all its evaluations, returns.csv of the last
    rows = rows[(rows["profile"] == profile) & (rows["task"] == name) & (rows["variant"] == "")]
    scores = rows.groupby("method")["score"].mean()
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
        if stage.startswith("policy-resampled-"):
            twins = files.load_tensors(folder / f"{stage}.safetensors")[0]["average.agreement"].flatten().tolist()
            yield from ((stage, entry["steps"], f"agreement of the twins, seed {i}", x) for i, x in enumerate(twins))
        if stage.startswith("energy-"):
            log = pd.read_parquet(folder / "metrics" / f"{stage}.parquet")
            yield stage, entry["steps"], "loss", log[log["step"] >= 0.9 * log["step"].max()]["loss"].mean()
        if stage.startswith("energy-qgpo-"):
            yield (
                stage,
                entry["steps"],
                "least loss",
                least_loss(folder, name, profile, float(stage.partition("-b")[2])),
            )


def least_loss(folder: Path, task: str, profile: str, beta: float) -> float:
    """Mean of `least_losses` over t, uniform as in training, by the trapezoidal rule."""
    data = datasets.load(tasks.get(task), profile)
    seeds = files.load_tensors(folder / "critic.safetensors")[1]["seeds"]
    behavior, critic = (load_networks(folder, stage, seeds, "cpu") for stage in ("behavior", "critic"))
    random = Random(seeds, "least-loss", like=data.state)
    state = data.standardize(data.state)[random.subset(len(data), STATES)]
    t = torch.tensor([0.001, 0.02, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    return torch.trapezoid(least_losses(behavior, critic, state, beta, t, random), t).item() / (1 - 0.001)


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
