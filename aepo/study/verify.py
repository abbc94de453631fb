"""`aepo verify`: recompute what can be recomputed of a run, and say what does not match."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor

from aepo import files, settings
from aepo.data import cache, reading, storage, tasks
from aepo.files import StudyError
from aepo.methods import DATASET
from aepo.study import runs
from aepo.study.ablations import slug
from aepo.study.results import KEY, read_results, read_returns

NOT_HASHED = {"seconds", "device", "settings_hash", "versions", "git_commit"}  # of an evaluation's manifest entry
TOLD = ("settings", "settings_hash", "seeds", "versions")  # by the manifest of a stage, as by its artefact


def find(given: Path) -> list[Path]:
    """Run folders at or below a folder: those that hold a manifest.json."""
    found = sorted(path.parent for path in runs.find_folder(given).rglob("manifest.json"))
    if not found:
        raise StudyError(f"there is no run at or below {given}: a run folder holds a manifest.json")
    return found


def problems(folder: Path) -> Iterator[str]:
    """What does not match in a run folder, a sentence each; nothing where all is as it was written."""
    kept = _Kept(folder, {})
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("evaluation/*.safetensors")]):
        try:
            kept.artifacts[str(path.relative_to(folder).with_suffix(""))] = files.load_tensors(path)
        except StudyError as error:
            yield str(error)
    for check in (_of_artifacts, _of_manifest, _of_data, _of_returns):
        try:
            yield from check(kept)
        except (StudyError, KeyError, ValueError, TypeError, AttributeError) as error:
            yield str(error) if isinstance(error, StudyError) else f"{folder} cannot be read ({error!r})"


def data_here(folder: Path) -> bool:
    """Whether the data that a run was made of can be looked at on this machine."""
    with contextlib.suppress(StudyError):
        kept = _Kept(folder, {})
        return kept.task is not None and any(map(storage.complete, kept.manifest["data"]))
    return False


@dataclass(frozen=True)
class _Kept:
    """What a run folder holds: the whole artefacts by their name below it, with their metadata, and the manifest."""

    folder: Path
    artifacts: dict[str, tuple[dict[str, Tensor], dict[str, Any]]]

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return {section: {} for section in runs.SECTIONS} | runs.read_manifest(self.folder)

    @cached_property
    def task(self) -> tasks.Task | None:
        """By the folder's name, or by the YAML file that its executed notebooks were given."""
        try:
            executed = json.loads((self.folder / "03_dataset.ipynb").read_text())
            return tasks.get(executed["metadata"]["papermill"]["parameters"]["task"])
        except (OSError, ValueError, KeyError):
            return tasks.TASKS.get(self.folder.name)


def _of_artifacts(kept: _Kept) -> Iterator[str]:
    """The settings hash of each, the .json beside, and the stages and networks that it was made of."""
    for name, (_, meta) in kept.artifacts.items():
        path, content, given = kept.folder / f"{name}.safetensors", meta["settings"], meta["settings_hash"]
        if given != (digest := settings.digest(content)):
            yield f"{path}: its settings hash is {given}, its settings give {digest}"
        told = {key: value for key, value in meta.items() if key not in ("format", "sha256")}
        if "stage" in meta and files.read_json(path.with_suffix(".json")) != told:
            yield f"{path.with_suffix('.json')} does not say what {path.name} holds"
        for stage, digest in content.items():
            made_of = isinstance(digest, str) and stage in kept.artifacts
            if made_of and digest != kept.artifacts[stage][1]["settings_hash"]:
                yield f"{path} was made of a {stage} with settings hash {digest}, {stage}.safetensors is another"
        for stage, digest in content.get("networks", {}).items():
            if stage not in kept.artifacts:
                yield f"{path} was made of {stage}.safetensors, which is missing or damaged"
            elif digest != kept.artifacts[stage][1]["sha256"]:
                yield f"{path} was made of other networks than {stage}.safetensors holds (their checksums differ)"


def _of_manifest(kept: _Kept) -> Iterator[str]:
    """Whether the manifest tells of each artefact, and the same."""
    where, stages = kept.folder / "manifest.json", kept.manifest["stages"]
    for name, (_, meta) in kept.artifacts.items():
        if "stage" in meta and name not in stages:
            yield f"{where} does not tell where {name}.safetensors came from"
        wrong = [key for key in TOLD if name in stages and stages[name].get(key) != meta.get(key)]
        if wrong:
            yield f"{where} tells other {', '.join(wrong)} of {name} than {name}.safetensors holds"
    for name in stages:
        if not (kept.folder / f"{name}.safetensors").exists():
            yield f"{where} tells of {name}.safetensors, which is missing"
    for method, entry in kept.manifest["evaluation"].items():
        content, digest = {key: value for key, value in entry.items() if key not in NOT_HASHED}, entry["settings_hash"]
        if settings.digest(content) != digest:
            yield f"{where}: the evaluation of {method} does not give its settings hash {digest}"
        rollouts = kept.artifacts.get(f"evaluation/{method}")
        if rollouts and rollouts[1]["settings_hash"] != digest:
            yield f"{where} tells of another evaluation of {method} than evaluation/{method}.safetensors holds"


def _of_data(kept: _Kept) -> Iterator[str]:
    """The data's hash, in the manifest, in the stages, and of the files on disk where they are here."""
    data = kept.manifest["data"]
    known = {entry["content_hash"] for entry in data.values()}
    for name, (_, meta) in kept.artifacts.items():
        digest = meta["settings"].get("data")
        if digest is not None and digest not in known:
            yield f"{kept.folder / name}.safetensors was made of data with hash {digest}, which the manifest does not name"
    for dataset_id, entry in data.items() if kept.task else ():
        place = storage.root() / dataset_id
        if storage.complete(dataset_id):
            found = cache.content_hash(reading.transitions(place, dataset_id, cast(tasks.Task, kept.task))[0])
            if found != entry["content_hash"]:
                yield f"dataset {dataset_id} in {place} has hash {found}, the run was made of {entry['content_hash']}"


def _of_returns(kept: _Kept) -> Iterator[str]:
    """returns.csv against the kept evaluations, the reference scores and results.csv."""
    path, profile = kept.folder / "returns.csv", kept.folder.parent.name
    if not path.exists():
        return
    frame = read_returns(path)
    for (variant, method), rows in frame[frame["method"] != DATASET].groupby(["variant", "method"]):
        name = f"evaluation/{'curve-' * (variant == 'curve')}{method}"
        if variant not in ("", "curve"):
            name = f"ablations/{slug(variant)}/{name}"
            with contextlib.suppress(StudyError):  # a damaged one is told with the variant's folder
                kept.artifacts[name] = files.load_tensors(kept.folder / f"{name}.safetensors")
        if name not in kept.artifacts:
            yield f"{path} has rows of {name}.safetensors, which is missing or damaged"
            continue
        tensors, meta = kept.artifacts[name]
        for column, key in (("return", "returns"), ("length", "length"), ("success", "success")):
            if not _same(rows[column], tensors[key].flatten()):
                yield f"{path}: column {column} of {method} is not what {name}.safetensors holds"
        if meta["settings"].get("seeds") not in (None, list(rows["seed"].unique())):
            yield f"{path}: seeds of {method} are not those of {name}.safetensors"

    references = [entry["reference_scores"] or (np.nan, np.nan) for entry in kept.manifest["data"].values()]
    scores = [100 * (frame["return"] - low) / (high - low) for low, high in references]
    if frame["score"].notna().any() and not any(_same(frame["score"], score) for score in scores):
        yield f"{path}: the column score does not follow from the returns and the manifest's reference scores"

    study, keys = runs.results_path(kept.folder.parents[1], profile), KEY[2:]
    frame = frame[frame["variant"] != "curve"].sort_values(keys, kind="stable")
    if study.exists():
        everything = read_results(study)
        own = everything[(everything["profile"] == profile) & (everything["task"] == kept.folder.name)]
        own = own[pd.MultiIndex.from_frame(own[keys]).isin(pd.MultiIndex.from_frame(frame[keys]))]
        if len(own) and not all(_same(own[column], frame[column]) for column in frame):
            yield f"{study}: its rows of {profile} {kept.folder.name} are not those of {path}"


def _same(one: pd.Series, other: Any) -> bool:
    """Equal in length and content, numbers to nine digits."""
    if not pd.api.types.is_numeric_dtype(one):
        return list(one) == list(other)
    one, other = (np.asarray(pd.Series(x), dtype=float) for x in (one, other))
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)
