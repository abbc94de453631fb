"""The tables of episodes: returns.csv of a run and the study's results.csv, a row an episode."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch

from aepo import files
from aepo.data.datasets import Dataset, recorded_returns
from aepo.methods import DATASET
from aepo.study import evaluation, runs
from aepo.study.evaluation import Rollouts
from aepo.study.runs import Run

COLUMNS = [
    "method", "variant", "beta", "guidance_scale", "seed", "checkpoint", "episode", "return", "length", "success", "score",
]  # fmt: skip
KEY = ["profile", "task", "variant", "method"]  # whose rows come and go together, and the order of results.csv


def episode_rows(rollouts: Rollouts, scales: Sequence[float], seeds: Sequence[int], **same: Any) -> pd.DataFrame:
    """Rollouts as rows of returns.csv without their score: of each row a guidance scale, a seed; what is the `same`."""
    count, episodes = rollouts.returns.shape
    return pd.DataFrame(
        {
            **same,
            "guidance_scale": np.repeat(scales, episodes),
            "seed": np.repeat(seeds, episodes),
            "checkpoint": "last",
            "episode": np.tile(np.arange(episodes), count),
            "return": rollouts.returns.flatten(),
            "length": rollouts.length.flatten(),
            "success": pd.Series(rollouts.success.flatten(), dtype=float).astype("Int64"),  # 0, 1 or missing
        }
    )


def evaluated_rows(run: Run, method: str, variant: str = "") -> pd.DataFrame:
    """A method's evaluation, played or kept, as rows of returns.csv without their score."""
    (beta, scales), rollouts = evaluation.guidance_of(run, method), cast(Rollouts, evaluation.evaluate(run, method))
    return episode_rows(rollouts, scales, run.seeds, method=method, variant=variant, beta=beta)


def curve_rows(run: Run, method: str) -> pd.DataFrame:
    """Return over guidance scale of the first seed, played or kept, as rows of returns.csv without their score."""
    beta, scales = evaluation.guidance_of(run, method)[0], run.profile.evaluation.curve_scales
    seeds, rollouts = run.seeds[:1] * len(scales), evaluation.evaluate_curve(run, method)
    return episode_rows(rollouts, scales, seeds, method=method, variant="curve", beta=beta)


def recorded_rows(run: Run, data: Dataset) -> pd.DataFrame:
    """The episodes of the recorded behavior as rows of returns.csv without their score."""
    returns = recorded_returns(data, run.task.horizon, run.task.continuing, run.task.recorded_return)
    whole = torch.bincount(data.episode.cpu()).clamp(max=run.task.horizon).numpy()
    length = run.task.horizon if run.task.continuing else whole
    # In a maze whose reward is 1 at the goal and 0 elsewhere, the return says whether an episode reached it.
    sparse = "Maze" in (run.task.env_id or "") and set(data.reward.unique().tolist()) <= {0.0, 1.0}
    success = (returns > 0).astype(float) if sparse else np.full(len(returns), np.nan)
    recorded = Rollouts(returns[None], np.broadcast_to(length, (1, len(returns))), success[None], np.empty(0))
    return episode_rows(recorded, [0.0], [0], method=DATASET, variant="", beta=0.0)


def with_scores(rows: pd.DataFrame, run: Run, data: Dataset) -> pd.DataFrame:
    """With the column score: 100 (return - low) / (high - low), NaN where the task has no reference scores."""
    low, high = (data.reference_scores if run.task.env_id else None) or (np.nan, np.nan)
    return rows.assign(score=100 * (rows["return"] - low) / (high - low)).reindex(columns=COLUMNS)


def write_returns(run: Run, data: Dataset) -> pd.DataFrame:
    """returns.csv of the run: recorded behavior, methods, curves and variants; of a train-only task the first alone."""
    folder = run.folder / "evaluation"
    methods = run.methods if run.task.env_id else [method for method in run.methods if evaluation.evaluate(run, method)]
    made = [recorded_rows(run, data), *(evaluated_rows(run, method) for method in methods)]
    made += [curve_rows(run, method) for method in methods if (folder / f"curve-{method}.safetensors").exists()]
    made += [read_returns(path) for path in sorted(folder.glob("ablation-*.csv")) if _is_of(path, run)]
    return write(with_scores(pd.concat(made, ignore_index=True), run, data), run.folder / "returns.csv")


def write(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write a table of episodes atomically; the table."""
    with files.atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)
    return frame


def made_of(run: Run, stages: Iterable[str]) -> dict[str, Any]:
    """What a variant's episodes stand on: the seeds, what is played, hashes of stages shared with the run (or None)."""
    networks = {stage: files.read_json(run.folder / f"{stage}.json").get("settings_hash") for stage in stages}
    played = [run.task.env_id, run.task.horizon, dict(run.task.env_kwargs)]
    return {"seeds": list(run.seeds), "played": played, "networks": networks}


def _is_of(variant: Path, run: Run) -> bool:
    """Whether a variant's episodes were made with the seeds, environment and networks that the run has now."""
    kept = files.read_json(variant.with_suffix(".json"))
    if not (same := kept == made_of(run, kept.get("networks", {}))):
        print(f"{variant.name} is of another run by now: not in returns.csv until `aepo ablations` makes it anew")
    return same


def read_returns(path: Path) -> pd.DataFrame:
    """A returns.csv or results.csv; StudyError where it is missing or something else."""
    if not path.exists():
        raise files.StudyError(f"{path} is missing: run notebook 07_evaluation first")
    numbers = {name: [""] for name in ("return", "length", "success", "score")}
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=numbers, float_precision="round_trip")
        return frame.assign(success=frame["success"].astype("Int64"), score=frame["score"].astype(float))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"is no table of returns ({' '.join(str(error).split())[:200]})"
        raise files.StudyError(f"{path} {reason}: delete it and run notebook 07_evaluation again") from None


def read_results(path: Path) -> pd.DataFrame:
    """The study's results.csv; StudyError where it is missing or something else."""
    frame = read_returns(path)
    if absent := [name for name in ("profile", "task", *COLUMNS) if name not in frame]:
        raise files.StudyError(f"{path} has no column {absent[0]!r}: take it back from git, or delete it and run again")
    return frame


def merge_results(run: Run) -> pd.DataFrame:
    """Put this run's rows, but for its curves, into the study's results.csv in place of those that it had."""
    path = runs.results_path(run.folder.parents[1], run.profile_name)
    rows = read_returns(run.folder / "returns.csv").assign(profile=run.profile_name, task=run.task.name)
    rows = rows[rows["variant"] != "curve"][["profile", "task", *COLUMNS]]
    with files.lock(path.parent, "results"):
        before = read_results(path) if path.exists() else rows[:0]
        other = before[~pd.MultiIndex.from_frame(before[KEY]).isin(pd.MultiIndex.from_frame(rows[KEY]))]
        return write(pd.concat([other, rows]).sort_values(KEY, kind="stable", ignore_index=True), path)
