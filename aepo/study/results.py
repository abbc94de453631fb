"""Evaluated stages and tables: rollouts kept with what made them, returns.csv, results.csv, scores with intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aepo import files
from aepo import settings as settings_table
from aepo.data.datasets import Dataset, recorded_returns
from aepo.methods import DATASET, METHODS, NAMES
from aepo.study import runs
from aepo.study.evaluation import Rollouts, nested_bootstrap, play
from aepo.study.matching import matched_scales
from aepo.study.policy import load_actor
from aepo.study.runs import Run

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
FEWER = "evaluate fewer episodes or seeds at once, or take more memory"


def _stored(path: Path, digest: str) -> Rollouts | None:
    """Rollouts kept under the same settings hash, else None."""
    if not path.exists():
        return None
    try:
        tensors, meta = files.load_tensors(path)
    except files.StudyError as error:
        print(f"evaluated again: {error}")
        return None
    if meta.get("settings_hash") != digest or set(tensors) != set(Rollouts.__dataclass_fields__):
        return None
    return Rollouts(**{k: v.numpy() for k, v in tensors.items()})


def _kept(run: Run, name: str, content: dict, roll: Callable[[], Rollouts], noted: str = "") -> Rollouts:
    """Rollouts kept under `name` with the same content, else rolled and kept; in the manifest as `noted`, if given."""
    digest, path = settings_table.digest(content), run.folder / "evaluation" / f"{name}.safetensors"
    entry = content | {"device": run.device, "settings_hash": digest}
    with files.lock(run.folder, f"evaluation-{name}"):
        rollouts = _stored(path, digest)
        if rollouts is None:
            started = time.time()
            with files.memory(f"evaluate {name}", FEWER):
                rollouts = roll()
            if noted:
                entry = content | {"seconds": round(time.time() - started, 1)} | entry
                runs.update_manifest(run.folder, "evaluation", noted, entry)
            tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in vars(rollouts).items()}
            files.save_tensors(
                path, tensors, {"settings": content, "settings_hash": digest}
            )  # after its manifest entry
        elif (
            noted and runs.read_manifest(run.folder).get("evaluation", {}).get(noted, {}).get("settings_hash") != digest
        ):
            runs.update_manifest(run.folder, "evaluation", noted, entry)
    return rollouts


def _environment(run: Run) -> dict:
    """What evaluates the task, as part of what a kept evaluation was made with."""
    task = run.task
    more = {"env_kwargs": dict(task.env_kwargs), "observation_keys": list(task.observation_keys)}
    return {"env_id": task.env_id, "horizon": task.horizon} | {key: value for key, value in more.items() if value}


def _networks(run: Run, method: str, beta: float) -> dict[str, str]:
    """Content hashes of the networks that a method acts with."""
    names = sorted(set(runs.stages_of(method, beta).values()))
    return {name: files.load_tensors(run.artifact(name))[1]["sha256"] for name in names}


def evaluate(run: Run, method: str, snapshot: int | None = None) -> Rollouts | None:
    """Evaluate a method's last networks for all seeds of the run: `evaluation.episodes` episodes each; kept, or run.

    `snapshot`: with that of its energy network, counted from the earliest. None, said in one sentence, for a train-only
    task: the manifest then holds how the policy acts, without rollouts.
    """
    settings, (beta, scale) = run.profile.evaluation, guidance_of(run, method)
    candidates = settings.candidates if METHODS[method].pick else 1
    noise_scale = settings.noise_scale[method]
    content = {
        "beta": beta,
        "guidance_scale": scale,
        "solver_steps": settings.solver_steps,
        "candidates": candidates,
        "episodes": settings.episodes,
        "seeds": list(run.seeds),
    }
    content |= {} if noise_scale == 1 else {"noise_scale": noise_scale}
    content |= {} if snapshot is None else {"snapshot": snapshot}
    content |= {"networks": _networks(run, method, beta)} | _environment(run)
    if run.task.env_id is None:
        entry = content | {"settings_hash": settings_table.digest(content)}
        runs.update_manifest(run.folder, "evaluation", method, entry)
        print(f"{method}: not evaluated, {run.task.name} is {run.task.note or 'train-only: it names no environment'}")
        return None
    name = method if snapshot is None else f"{method}-snapshot{snapshot + 1}"

    def roll() -> Rollouts:
        sampling = (settings.solver_steps, candidates, run.device, noise_scale, snapshot)
        actor = load_actor(run.folder, method, run.seeds, beta, scale, *sampling)
        kept = KEPT_EPISODES if snapshot is None else 0
        return play(actor, run.task, run.seeds, settings.episodes, f"evaluate {name}", run.folder / "progress", kept)

    return _kept(run, name, content, roll, noted=method if snapshot is None else "")


def guidance_of(run: Run, method: str) -> tuple[float, float | list[float]]:
    """Inverse temperature and guidance scale that a method is evaluated with, one a seed where matched; 0 without one."""
    settings, entry = run.profile.evaluation, METHODS[method]
    beta = settings.beta[entry.shares or method] if entry.tempered else 0.0
    scale = settings.guidance_scale[method] if entry.guided else 0.0
    if scale is None:
        scale = [settings.scale_factor[method] * matched for matched in matched_scales(run, method, beta)]
    return beta, scale


def evaluate_curve(run: Run, data: Dataset, method: str) -> pd.DataFrame:
    """Return over guidance scale of the first seed, all scales side by side as rows of one actor: one row an episode."""
    settings, seed = run.profile.evaluation, run.seeds[0]
    beta, scales = guidance_of(run, method)[0], list(settings.curve_scales)
    seeds, noise_scale = [seed] * len(scales), settings.noise_scale[method]
    content = {
        "scales": scales,
        "solver_steps": settings.solver_steps,
        "episodes": settings.curve_episodes,
        "seed": seed,
        "noise_scale": noise_scale,
        "networks": _networks(run, method, beta),
    } | _environment(run)
    if METHODS[method].closed:  # of a network, beta is part of its name
        content["beta"] = beta

    def roll() -> Rollouts:
        sampling = (scales, settings.solver_steps, 1, run.device, noise_scale)
        actor = load_actor(run.folder, method, seeds, beta, *sampling)
        name, folder = f"curve {method}", run.folder / "progress"
        return play(actor, run.task, seeds, settings.curve_episodes, name, folder, KEPT_EPISODES)

    rollouts = _kept(run, f"curve-{method}", content, roll)
    frames = [rows(rollouts, k, method, "curve", beta, scale, seed) for k, scale in enumerate(scales)]
    frame = scored(pd.concat(frames, ignore_index=True), run, data)
    with files.atomic_path(run.folder / "evaluation" / f"curve-{method}.csv") as temporary:
        frame.to_csv(temporary, index=False)
    return frame


def best_rows(run: Run, method: str, last: Rollouts) -> pd.DataFrame:
    """Episodes of each seed's best network among snapshots and the last, picked by these episodes; checkpoint says so."""
    count, (beta, scale) = run.profile.energy.snapshots, guidance_of(run, method)
    candidates = [*(evaluate(run, method, i) for i in range(count - 1)), last]
    scales = scale if isinstance(scale, list) else [scale] * len(run.seeds)
    frames = [
        rows(candidates[best], i, method, "", beta, scales[i], run.seeds[i])
        for i, best in enumerate(np.argmax([rollouts.returns.mean(1) for rollouts in candidates], 0))
    ]
    return pd.concat(frames, ignore_index=True).assign(checkpoint=f"best of {count}")


def rows(rollouts: Rollouts, row: int, method: str, variant: str, beta: float, scale: float, seed: int) -> pd.DataFrame:
    """The episodes of one row of rollouts, as rows of returns.csv without their score."""
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
            "success": _success(rollouts.success[row]),
        }
    )


def _success(values: np.ndarray) -> pd.Series:
    """0, 1 or missing."""
    return pd.Series(values, dtype=float).astype("Int64")


def references(run: Run, data: Dataset) -> tuple[float, float] | None:
    """Returns of score 0 and 100; None where there are none, and for a train-only task."""
    return data.reference_scores if run.task.env_id else None


def scored(frame: pd.DataFrame, run: Run, data: Dataset) -> pd.DataFrame:
    """With the column score: 100 (return - low) / (high - low), NaN where the task has no reference scores."""
    low, high = references(run, data) or (np.nan, np.nan)
    return frame.assign(score=100 * (frame["return"] - low) / (high - low)).reindex(columns=COLUMNS)


def _recorded_success(run: Run, data: Dataset, recorded: np.ndarray) -> pd.Series:
    """Whether recorded episodes reached the goal, where the reward says so: in a maze, 1 at the goal and 0 elsewhere."""
    sparse = "Maze" in (run.task.env_id or "") and set(data.reward.unique().tolist()) <= {0.0, 1.0}
    return _success(recorded > 0 if sparse else np.full(len(recorded), np.nan))


def write_returns(run: Run, data: Dataset) -> pd.DataFrame:
    """returns.csv of the run: the recorded behavior, every evaluated method, and the curves that are there.

    A train-only task has the recorded behavior alone.
    """
    recorded = recorded_returns(data, run.task.horizon, run.task.continuing, run.task.recorded_return)
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
                "length": run.task.horizon if run.task.continuing else torch.bincount(data.episode.cpu()).numpy(),
                "success": _recorded_success(run, data, recorded),
            }
        )
    ]
    for method in run.methods if run.task.env_id else ():
        rollouts, (beta, scale) = evaluate(run, method), guidance_of(run, method)
        scales = scale if isinstance(scale, list) else [scale] * len(run.seeds)
        frames += [rows(rollouts, i, method, "", beta, scales[i], seed) for i, seed in enumerate(run.seeds)]
        if METHODS[method].energy and run.profile.energy.snapshots > 1:
            frames.append(best_rows(run, method, rollouts))
    frame = scored(pd.concat(frames, ignore_index=True), run, data)
    more = [run.folder / "evaluation" / f"curve-{m}.csv" for m in run.methods if METHODS[m].guided]
    more += [path for path in sorted((run.folder / "evaluation").glob("ablation-*.csv")) if _is_of(path, run)]
    frame = pd.concat([frame, *(read_returns(path) for path in more if path.exists())], ignore_index=True)
    with files.atomic_path(run.folder / "returns.csv") as temporary:
        frame.to_csv(temporary, index=False)
    return frame


def _is_of(variant: Path, run: Run) -> bool:
    """Whether a variant's episodes were made with the run's seeds and with the networks that it has now."""
    kept = files.read_json(variant.with_suffix(".json"))
    now = {
        stage: files.read_json(run.folder / f"{stage}.json").get("settings_hash") for stage in kept.get("networks", {})
    }
    if kept.get("seeds") == list(run.seeds) and kept.get("networks") == now:
        return True
    print(f"{variant.name} is of other seeds or networks than the run's: left out until `aepo ablations` makes it anew")
    return False


def read_returns(path: Path) -> pd.DataFrame:
    """A returns.csv or results.csv; StudyError where it is missing or something else."""
    if not path.exists():
        raise files.StudyError(f"{path} is missing: run notebook 07_evaluation first")
    numbers = {name: [""] for name in ("return", "length", "success", "score")}
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=numbers, float_precision="round_trip")
        return frame.assign(success=frame["success"].astype("Int64"), score=frame["score"].astype(float))[[*frame]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise files.StudyError(
            f"{path} is no table of returns ({reason[:200]}): delete it and run notebook 07_evaluation again"
        ) from None


def read_results(path: Path) -> pd.DataFrame:
    """The study's results.csv; StudyError where it is missing or something else."""
    frame = read_returns(path)
    if absent := [name for name in ("profile", "task", *COLUMNS) if name not in frame]:
        raise files.StudyError(f"{path} has no column {absent[0]!r}: take it back from git, or delete it and run again")
    return frame


def results_path(run: Run) -> Path:
    """runs/results.csv; the smoke profile, which is no result, has its own below runs/smoke."""
    return runs.results_path(run.folder.parents[1], run.profile_name)


def merge_results(run: Run) -> pd.DataFrame:
    """Put this run's rows into the study's results.csv in place of older ones of its methods and variants, under a lock.

    What other runs of the task made stays.
    """
    path = results_path(run)
    rows = read_returns(run.folder / "returns.csv")
    rows.insert(0, "profile", run.profile_name)
    rows.insert(1, "task", run.task.name)
    with files.lock(path.parent, "results"):
        if path.exists():
            before, key = read_results(path), ["profile", "task", "method", "variant"]
            other = before[~pd.MultiIndex.from_frame(before[key]).isin(pd.MultiIndex.from_frame(rows[key]))]
            rows = pd.concat([other, rows], ignore_index=True)
        rows = rows.sort_values(["profile", "task"], kind="stable", ignore_index=True)
        with files.atomic_path(path) as temporary:
            rows.to_csv(temporary, index=False)
    return rows


def score_table(returns: pd.DataFrame) -> pd.DataFrame:
    """One row a method and checkpoint: mean return and score with nested 95% bootstrap intervals, success, counts.

    The last checkpoint; where energy networks have snapshots, the best of these in a row of its own. Score and success are
    NaN where the task has none.
    """
    rows = []
    main = returns[returns["variant"] == ""]
    parts = main.groupby(["method", "checkpoint"])
    for method, checkpoint in sorted(parts.groups, key=lambda key: (NAMES.index(key[0]), key[1] != "last")):
        part = parts.get_group((method, checkpoint))
        row = {"method": method, "checkpoint": checkpoint}
        for name in ("return", "score"):
            grid = part.pivot(index="seed", columns="episode", values=name).to_numpy()
            known = not np.isnan(grid).any()
            row[name], row[f"{name}_low"], row[f"{name}_high"] = nested_bootstrap(grid) if known else [np.nan] * 3
        row |= {"success": part["success"].astype(float).mean(), "seeds": part["seed"].nunique(), "episodes": len(part)}
        rows.append(row)
    return pd.DataFrame(rows)


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """`score_table` for people: intervals in brackets, one decimal; a dash for what the task does not have."""
    show = lambda name: [  # noqa: E731
        "-" if np.isnan(row[name]) else f"{row[name]:.1f} [{row[f'{name}_low']:.1f}, {row[f'{name}_high']:.1f}]"
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(
        {
            "method": [
                m + ("" if c == "last" else f", {c} snapshots")
                for m, c in zip(table["method"], table["checkpoint"], strict=True)
            ],
            "return": show("return"),
            "score": show("score"),
            "success": ["-" if np.isnan(s) else f"{100 * s:.0f}%" for s in table["success"]],
            "seeds": table["seeds"],
            "episodes": table["episodes"],
        }
    )
