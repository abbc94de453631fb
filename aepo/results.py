"""Evaluated stages and tables: rollouts kept with what made them, returns.csv, results.csv, scores with intervals."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aepo import models, runs, stages
from aepo import settings as settings_table
from aepo.datasets import Dataset, recorded_returns
from aepo.evaluation import Rollouts, make_environments, nested_bootstrap, rollout
from aepo.methods import DATASET, LABELS, METHODS
from aepo.policy import load_networks, make_actor
from aepo.runs import Run

COLUMNS = [
    "method",
    "variant",
    "beta",
    "guidance_scale",
    "seed",
    "checkpoint",
    "episode",
    "return",
    "length",
    "success",
    "score",
]
KEPT_EPISODES = 8


def _content_hashes(run: Run, names: list[str]) -> dict[str, str]:
    return {name: runs.load_tensors(run.artifact(name))[1]["sha256"] for name in names}


def _stored(path: Path, digest: str) -> Rollouts | None:
    """Rollouts kept under the same settings hash, else None."""
    if not path.exists():
        return None
    try:
        tensors, meta = runs.load_tensors(path)
    except runs.StudyError as error:
        print(f"evaluated again: {error}")
        return None
    return Rollouts(**{k: v.numpy() for k, v in tensors.items()}) if meta["settings_hash"] == digest else None


def _keep(path: Path, rollouts: Rollouts, content: dict, digest: str) -> Rollouts:
    kept = Rollouts(
        rollouts.returns, rollouts.length, rollouts.success, rollouts.states[:, :, :KEPT_EPISODES].astype(np.float32)
    )
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in vars(kept).items()}
    runs.save_tensors(path, tensors, {"settings": content, "settings_hash": digest})
    return kept


def evaluate(run: Run, method: str) -> Rollouts:
    """Evaluate a method's last networks for all seeds of the run: `evaluation.episodes` episodes each; kept, or run."""
    settings, entry = run.profile.evaluation, METHODS[method]
    beta = settings.beta[method] if entry.energy else 0.0
    scale = settings.guidance_scale[method] if entry.energy else 0.0
    energy = runs.energy_stage(method, beta) if entry.energy else None
    used = ["behavior"] + ["critic"] * entry.candidates + [energy] * bool(energy)
    how = {
        "beta": beta,
        "guidance_scale": scale,
        "solver_steps": settings.solver_steps,
        "candidates": settings.candidates if entry.candidates else 1,
        "episodes": settings.episodes,
        "seeds": list(run.seeds),
    }
    content = how | {"networks": _content_hashes(run, used), "env_id": run.task.env_id, "horizon": run.task.horizon}
    digest = settings_table.digest(content)
    path = run.folder / "evaluation" / f"{method}.safetensors"
    with runs.lock(run.folder, f"evaluation-{method}"):
        rollouts = _stored(path, digest)
        if rollouts is None:
            started = time.time()
            networks = {name: load_networks(run.folder, name, run.seeds, run.device) for name in used}
            actor = make_actor(
                entry,
                networks["behavior"],
                networks.get("critic"),
                networks.get(energy),
                scale,
                settings.solver_steps,
                settings.candidates,
            )
            environments = make_environments(run.task.env_id, len(run.seeds) * settings.episodes)
            rollouts = rollout(
                actor,
                environments,
                run.seeds,
                settings.episodes,
                run.task.horizon,
                f"evaluate {method}",
                run.folder / "progress",
            )
            environments.close()
            rollouts = _keep(path, rollouts, content, digest)
            entry_seconds = {"seconds": round(time.time() - started, 1), "device": run.device, "settings_hash": digest}
            runs.update_manifest(run.folder, "evaluation", method, content | entry_seconds)
    return rollouts


def evaluate_curve(run: Run, data: Dataset, method: str) -> pd.DataFrame:
    """Return over beta and guidance scale for the first seed, with energies trained for `curve_steps` steps.

    All cells run side by side as rows of one actor. Returns one row an episode: beta, guidance_scale, episode, return.
    """
    settings = run.profile.evaluation
    seed = run.seeds[0]
    single = replace(run, seeds=(seed,))
    behavior, critic = (load_networks(run.folder, name, [seed], run.device) for name in ("behavior", "critic"))
    brief = replace(run.profile.energy, steps=settings.curve_steps)
    nets, names = [], []
    for beta in settings.curve_betas:
        nets.append(stages.train_energy(single, data, behavior, critic, method, beta, brief, prefix="curve"))
        names.append(runs.energy_stage(method, beta, "curve"))
    cells = [(i, scale) for i in range(len(nets)) for scale in settings.curve_scales]
    content = {
        "cells": [[settings.curve_betas[i], scale] for i, scale in cells],
        "solver_steps": settings.solver_steps,
        "episodes": settings.curve_episodes,
        "seed": seed,
        "networks": _content_hashes(run, ["behavior", *names]),
    }
    digest = settings_table.digest(content)
    path = run.folder / "evaluation" / f"curve-{method}.safetensors"
    with runs.lock(run.folder, f"curve-{method}"):
        rollouts = _stored(path, digest)
        if rollouts is None:
            energy = models.stack_energies([nets[i] for i, _ in cells])
            scales = torch.tensor([scale for _, scale in cells], device=run.device).view(-1, 1, 1)
            actor = make_actor(
                METHODS[method],
                models.take_seeds(behavior, [0] * len(cells), 1),
                None,
                energy,
                scales,
                settings.solver_steps,
                1,
            )
            environments = make_environments(run.task.env_id, len(cells) * settings.curve_episodes)
            rollouts = rollout(
                actor,
                environments,
                [seed] * len(cells),
                settings.curve_episodes,
                run.task.horizon,
                f"curve {method}",
                run.folder / "progress",
            )
            environments.close()
            rollouts = _keep(path, rollouts, content, digest)
    frames = [
        _rows(rollouts, k, method, "curve", settings.curve_betas[i], scale, seed) for k, (i, scale) in enumerate(cells)
    ]
    frame = _scored(pd.concat(frames, ignore_index=True), data)
    with runs.atomic_path(run.folder / "evaluation" / f"curve-{method}.csv") as temporary:
        frame.to_csv(temporary, index=False)
    return frame


def _rows(
    rollouts: Rollouts, row: int, method: str, variant: str, beta: float, scale: float, seed: int
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "method": method,
            "variant": variant,
            "beta": beta,
            "guidance_scale": scale,
            "seed": seed,
            "checkpoint": "last",
            "episode": range(rollouts.returns.shape[1]),
            "return": rollouts.returns[row],
            "length": rollouts.length[row],
            "success": rollouts.success[row].astype(int),
        }
    )


def _scored(frame: pd.DataFrame, data: Dataset) -> pd.DataFrame:
    low, high = data.reference_scores
    return frame.assign(score=100 * (frame["return"] - low) / (high - low)).reindex(columns=COLUMNS)


def write_returns(run: Run, data: Dataset) -> pd.DataFrame:
    """returns.csv of the run: the recorded behavior, every evaluated method, and the curves that are there."""
    recorded = recorded_returns(data, run.task.horizon, run.task.continuing)
    frames = [
        pd.DataFrame(
            {
                "method": DATASET,
                "variant": "",
                "beta": 0.0,
                "guidance_scale": 0.0,
                "seed": 0,
                "checkpoint": "last",
                "episode": range(len(recorded)),
                "return": recorded,
                "length": run.task.horizon,
                "success": (recorded > 0).astype(int),
            }
        )
    ]
    settings = run.profile.evaluation
    for method in run.methods:
        rollouts, guided = evaluate(run, method), METHODS[method].energy
        beta, scale = (settings.beta[method], settings.guidance_scale[method]) if guided else (0.0, 0.0)
        frames += [_rows(rollouts, i, method, "", beta, scale, seed) for i, seed in enumerate(run.seeds)]
    frame = _scored(pd.concat(frames, ignore_index=True), data)
    for method in run.methods:
        curve = run.folder / "evaluation" / f"curve-{method}.csv"
        if METHODS[method].energy and curve.exists():
            frame = pd.concat([frame, pd.read_csv(curve)], ignore_index=True)
    with runs.atomic_path(run.folder / "returns.csv") as temporary:
        frame.to_csv(temporary, index=False)
    return frame


def read_returns(path: Path) -> pd.DataFrame:
    """A returns.csv or results.csv; StudyError where it is missing."""
    if not path.exists():
        raise runs.StudyError(f"{path} is missing: run notebook 07_evaluation first")
    return pd.read_csv(path, keep_default_na=False)


def results_path(run: Run) -> Path:
    """runs/results.csv; the smoke profile, which is no result, has its own below runs/smoke."""
    root = run.folder.parents[1]
    return (root / "smoke" if run.profile_name == "smoke" else root) / "results.csv"


def merge_results(run: Run) -> pd.DataFrame:
    """Put this run's rows into the study's results.csv in place of its older ones, under a lock."""
    path = results_path(run)
    rows = read_returns(run.folder / "returns.csv")
    rows.insert(0, "profile", run.profile_name)
    rows.insert(1, "task", run.task.name)
    with runs.lock(path.parent, "results"):
        if path.exists():
            before = read_returns(path)
            other = before[(before["profile"] != run.profile_name) | (before["task"] != run.task.name)]
            rows = pd.concat([other, rows], ignore_index=True)
        rows = rows.sort_values(["profile", "task"], kind="stable", ignore_index=True)
        with runs.atomic_path(path) as temporary:
            rows.to_csv(temporary, index=False)
    return rows


def score_table(returns: pd.DataFrame) -> pd.DataFrame:
    """One row a method, last checkpoint: mean return and score with nested 95% bootstrap intervals, success, counts."""
    rows = []
    main = returns[(returns["variant"] == "") & (returns["checkpoint"] == "last")]
    for method in [m for m in LABELS if m in set(main["method"])]:
        part = main[main["method"] == method]
        row = {"method": method}
        for name in ("return", "score"):
            grid = part.pivot(index="seed", columns="episode", values=name).to_numpy()
            row[name], row[f"{name}_low"], row[f"{name}_high"] = nested_bootstrap(grid)
        row |= {"success": part["success"].mean(), "seeds": part["seed"].nunique(), "episodes": len(part)}
        rows.append(row)
    return pd.DataFrame(rows)


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """`score_table` for people: intervals in brackets, one decimal."""
    show = lambda name: [  # noqa: E731
        f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]" for _, row in table.iterrows()
    ]
    return pd.DataFrame(
        {
            "method": [LABELS[m] for m in table["method"]],
            "return": show("return"),
            "score": show("score"),
            "success": [f"{100 * s:.0f}%" for s in table["success"]],
            "seeds": table["seeds"],
            "episodes": table["episodes"],
        }
    )
