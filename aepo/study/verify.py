"""`aepo verify`: recompute every hash and number of a run that can be recomputed, and say what does not match."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from aepo import files, settings
from aepo.data import cache, reading, storage, tasks
from aepo.data.datasets import load, recorded_returns
from aepo.methods import DATASET
from aepo.study import runs
from aepo.study.ablations import slug
from aepo.study.results import read_results, read_returns

NOT_HASHED = {"seconds", "device", "settings_hash", "versions", "git_commit"}  # of an evaluation's manifest entry
Tensors = dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]


def find(given: Path) -> list[Path]:
    """Run folders at or below a folder: those that hold a manifest.json."""
    found = sorted(path.parent for path in runs.find_folder(given).rglob("manifest.json"))
    if not found:
        raise files.StudyError(f"there is no run at or below {given}: a run folder holds a manifest.json")
    return found


def problems(folder: Path) -> Iterator[str]:
    """What does not match in a run folder, a sentence each; nothing where all is as it was written."""
    artifacts: Tensors = {}
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("evaluation/*.safetensors")]):
        try:
            artifacts[str(path.relative_to(folder).with_suffix(""))] = files.load_tensors(path)
        except files.StudyError as error:
            yield str(error)
    try:
        manifest = runs.read_manifest(folder)
    except files.StudyError as error:
        yield str(error)
        return
    for name, (_, meta) in artifacts.items():
        yield from _of_artifact(folder, name, meta, artifacts)
    yield from _of_manifest(folder, manifest, artifacts)
    yield from _of_data(folder, manifest, artifacts)
    if (folder / "returns.csv").exists():
        yield from _of_returns(folder, manifest, artifacts)


def _of_artifact(folder: Path, name: str, meta: Mapping[str, Any], artifacts: Tensors) -> Iterator[str]:
    """Settings hash, the .json beside, and the stages and networks that an artefact was made of."""
    path, content = folder / f"{name}.safetensors", meta.get("settings", {})
    if meta.get("settings_hash") != settings.digest(content):
        yield f"{path}: its settings hash is {meta.get('settings_hash')}, its settings give {settings.digest(content)}"
    if "stage" in meta:
        told = {key: value for key, value in meta.items() if key not in ("format", "sha256")}
        try:
            if files.read_json(path.with_suffix(".json")) != told:
                yield f"{path.with_suffix('.json')} does not say what {path.name} holds"
        except files.StudyError as error:
            yield str(error)
    for stage, digest in content.items():
        if stage in artifacts and isinstance(digest, str) and digest != artifacts[stage][1].get("settings_hash"):
            yield f"{path} was made of a {stage} with settings hash {digest}, {stage}.safetensors is another"
    for stage, digest in content.get("networks", {}).items():
        if stage not in artifacts:
            yield f"{path} was made of {stage}.safetensors, which is missing or damaged"
        elif digest != artifacts[stage][1]["sha256"]:
            yield f"{path} was made of other networks than {stage}.safetensors holds (their checksums differ)"


def _of_manifest(folder: Path, manifest: Mapping[str, Any], artifacts: Tensors) -> Iterator[str]:
    """Whether the manifest tells of each artefact, and the same."""
    where, stages = folder / "manifest.json", manifest.get("stages", {})
    for name, (_, meta) in artifacts.items():
        if "stage" in meta and name not in stages:
            yield f"{where} does not tell where {name}.safetensors came from"
    for name, entry in stages.items():
        if not (folder / f"{name}.safetensors").exists():
            yield f"{where} tells of {name}.safetensors, which is missing"
        elif name in artifacts:
            told = ("settings", "settings_hash", "seeds", "versions")
            wrong = [key for key in told if entry.get(key) != artifacts[name][1].get(key)]
            if wrong:
                yield f"{where} tells other {', '.join(wrong)} of {name} than {name}.safetensors holds"
    for method, entry in manifest.get("evaluation", {}).items():
        content = {key: value for key, value in entry.items() if key not in NOT_HASHED}
        if settings.digest(content) != entry.get("settings_hash"):
            yield f"{where}: the evaluation of {method} does not give its settings hash {entry.get('settings_hash')}"
        kept = artifacts.get(f"evaluation/{method}")
        if kept and kept[1].get("settings_hash") != entry.get("settings_hash"):
            yield f"{where} tells of another evaluation of {method} than evaluation/{method}.safetensors holds"


def task_of(folder: Path) -> tasks.Task | None:
    """The task of a run folder: by its name, or by the YAML file that its executed notebooks were given."""
    if folder.name in tasks.TASKS:
        return tasks.TASKS[folder.name]
    try:
        executed = json.loads((folder / "03_dataset.ipynb").read_text())
        return tasks.get(executed["metadata"]["papermill"]["parameters"]["task"])
    except (OSError, ValueError, KeyError):
        return None


def data_here(folder: Path) -> bool:
    """Whether the data that a run was made of can be looked at on this machine."""
    with contextlib.suppress(ValueError, files.StudyError):
        return task_of(folder) is not None and any(map(storage.complete, runs.read_manifest(folder).get("data", {})))
    return False


def _of_data(folder: Path, manifest: Mapping[str, Any], artifacts: Tensors) -> Iterator[str]:
    """The data's hash, in the manifest, in the stages, and of the files on disk where they are here."""
    known, task = {entry["content_hash"] for entry in manifest.get("data", {}).values()}, task_of(folder)
    for name, (_, meta) in artifacts.items():
        made_of = meta.get("settings", {}).get("data")
        if made_of is not None and made_of not in known:
            yield f"{folder / name}.safetensors was made of data with hash {made_of}, which the manifest does not name"
    for dataset_id, entry in manifest.get("data", {}).items():
        if task is None or not storage.complete(dataset_id):
            continue
        place = storage.root() / dataset_id
        try:
            found = cache.content_hash(reading.transitions(place, dataset_id, task)[0])
        except files.StudyError as error:
            yield str(error)
            continue
        if found != entry["content_hash"]:
            yield f"dataset {dataset_id} in {place} has hash {found}, the run was made of {entry['content_hash']}"


def _of_returns(folder: Path, manifest: Mapping[str, Any], artifacts: Tensors) -> Iterator[str]:
    """returns.csv against the kept evaluations, the recorded returns, the reference scores and results.csv."""
    path = folder / "returns.csv"
    try:
        frame = read_returns(path)
        for (variant, method), rows in frame[frame["method"] != DATASET].groupby(["variant", "method"]):
            yield from _of_rollouts(folder, variant, method, rows, artifacts)
        yield from _of_recorded(folder, frame[frame["method"] == DATASET], manifest)
        yield from _of_scores(path, frame, manifest)
        yield from _of_results(folder, frame)
    except (KeyError, ValueError, files.StudyError) as error:
        yield f"{path} cannot be read ({type(error).__name__}: {error})"


def _of_rollouts(folder: Path, variant: str, method: str, rows: pd.DataFrame, artifacts: Tensors) -> Iterator[str]:
    """Rows of a method, in the order they are written in, against its kept rollouts."""
    name = f"evaluation/curve-{method}" if variant == "curve" else f"evaluation/{method}"
    if variant not in ("", "curve"):
        name = f"ablations/{slug(variant)}/{name}"
        with contextlib.suppress(files.StudyError):  # a damaged one is told with the variant's folder
            artifacts = artifacts | {name: files.load_tensors(folder / f"{name}.safetensors")}
    path = folder / "returns.csv"
    if name not in artifacts:
        yield f"{path} has rows of {name}.safetensors, which is missing or damaged"
        return
    tensors, meta = artifacts[name]
    for column, key in (("return", "returns"), ("length", "length"), ("success", "success")):
        if not _same(rows[column].astype(float).to_numpy(), tensors[key].double().flatten().numpy()):
            yield f"{path}: column {column} of {method} is not what {name}.safetensors holds"
    seeds = meta["settings"].get("seeds")
    if seeds is not None and list(dict.fromkeys(rows["seed"])) != seeds:
        yield f"{path}: seeds of {method} are not those of {name}.safetensors"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def _of_recorded(folder: Path, rows: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[str]:
    """The recorded behavior's rows against the data, where they are here."""
    task, profile = task_of(folder), folder.parent.name
    if not data_here(folder) or task.dataset_id(profile) not in manifest["data"]:
        return
    returns = recorded_returns(load(task, profile), task.horizon, task.continuing, task.recorded_return)
    if not _same(rows["return"].to_numpy(float), returns):
        yield f"{folder / 'returns.csv'}: the recorded behavior's returns are not those of the data"


def _of_scores(path: Path, frame: pd.DataFrame, manifest: Mapping[str, Any]) -> Iterator[str]:
    """The column score against returns and the manifest's reference scores; NaN throughout where there are none."""
    score = frame["score"].to_numpy(float)
    for entry in manifest.get("data", {}).values():
        low, high = entry["reference_scores"] or (np.nan, np.nan)
        if np.isnan(score).all() or _same(score, 100 * (frame["return"].to_numpy(float) - low) / (high - low)):
            return
    yield f"{path}: the column score does not follow from the returns and the manifest's reference scores"


def _of_results(folder: Path, frame: pd.DataFrame) -> Iterator[str]:
    """The rows of results.csv of the run's methods and variants against returns.csv."""
    profile, key = folder.parent.name, ["method", "variant"]
    path = runs.results_path(folder.parents[1], profile)
    if not path.exists():
        return
    everything = read_results(path)
    own = everything[(everything["profile"] == profile) & (everything["task"] == folder.name)]
    own = own[pd.MultiIndex.from_frame(own[key]).isin(pd.MultiIndex.from_frame(frame[key]))]
    try:
        pd.testing.assert_frame_equal(
            own[frame.columns].reset_index(drop=True), frame, check_dtype=False, rtol=1e-9, atol=1e-9
        )
    except AssertionError:
        if len(own):
            yield f"{path}: its rows of {profile} {folder.name} are not those of {folder / 'returns.csv'}"
