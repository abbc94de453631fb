"""A dataset as it is written, and its tensors beside it, so that loading takes no time: checked, made again where wrong.

Verified at every load: the checksum of the cache, and size and time of modification of each file of the data; where those
differ, the SHA-256 of the files. A change that leaves size and time as they were is not noticed.
"""

import hashlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import minari
import numpy as np
import torch
from minari.data_collector.episode_buffer import EpisodeBuffer
from torch import Tensor

from aepo import environments, files, settings
from aepo.data import reading, storage
from aepo.data.tasks import Task

EXACT_ROWS = 2**18  # float32 sums of more rows drift; below, the last bits of the tables stay as they are
CONSTANT = 1e-3  # a dimension that varies less is left as it is: dividing would blow up what it does later
Cached = tuple[dict[str, Tensor], dict[str, Any]]  # by the names of `Dataset`'s fields; content hash, warnings, files


def create(staging: Path, dataset_id: str, task: Task, episodes: Iterable[EpisodeBuffer], references, **told) -> None:
    """Write episodes, returns of score 0 and 100, a `record` and what else is `told` as a Minari dataset, and its cache."""
    record = told.pop("record", None)
    told |= dict(zip(("ref_min_score", "ref_max_score"), references, strict=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(is set to None|env_spec is None)", module="minari")
        made = minari.create_dataset_from_buffers(dataset_id, buffer=episodes, eval_env=environments.spec(task), **told)
    if record:
        made.storage.update_metadata(record)
    build(staging / dataset_id, dataset_id, task)


def load_or_build(folder: Path, dataset_id: str, task: Task) -> Cached:
    """The dataset's tensors and what is known of them: from the cache, which is made where it is missing or wrong."""
    target = _path(folder, task)
    if target.exists():
        found = read(target)
        if found is None:
            print(f"{dataset_id}: its cache is damaged (the checksum does not match), so it is made again")
        elif found[1]["stamps"] != _stamps(folder) and found[1]["sha256"] != _sha256(folder):
            print(f"{dataset_id}: the data have changed since their cache was made, so it is made again")
        else:
            return found
    return build(folder, dataset_id, task)


def build(folder: Path, dataset_id: str, task: Task) -> Cached:
    """Read the data, check them, write the cache; StudyError, and nothing written, where a check fails."""
    stamps, hashes = _stamps(folder), _sha256(folder)
    arrays, box, odd = reading.transitions(folder, dataset_id, task)
    made = {"content_hash": content_hash(arrays), "warnings": odd, "stamps": stamps, "sha256": hashes}
    for warning in odd:
        print(f"dataset {dataset_id}: {warning}")
    action = arrays["action"]
    np.clip(2 * (action - box.low) / (box.high - box.low) - 1, -1, 1, out=action)
    state, wide = arrays["state"], np.float64 if len(action) > EXACT_ROWS else np.float32
    arrays["state_mean"], std = (how(0, dtype=wide).astype(np.float32) for how in (state.mean, state.std))
    arrays["state_std"] = np.where((std < CONSTANT) | (np.ptp(state, 0) < CONSTANT), np.float32(1), std)
    arrays |= {"action_low": box.low.astype(np.float32), "action_high": box.high.astype(np.float32)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    try:
        files.save_tensors(_path(folder, task), tensors, {"made": made, "made_hash": settings.digest(made)})
    except (files.StudyError, OSError) as error:
        cause = getattr(error.__cause__ or error, "strerror", None) or error
        print(f"{dataset_id}: no cache was written ({cause}), so each load takes its time")
    return tensors, made


def read(target: Path) -> Cached | None:
    """Memory-mapped tensors and what was written with them; None where the file is not what was written."""
    try:
        tensors, stored = files.load_tensors(target)
    except files.StudyError:
        return None
    made = stored.get("made", {})
    return (tensors, made) if stored.get("made_hash") == settings.digest(made) else None


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()[:16]


def _path(folder: Path, task: Task) -> Path:
    """The cache of a dataset as this task reads it."""
    keys = ("observation_keys", "dimensions", "env_id", "env_kwargs")
    reads = {key: getattr(task, key) for key in keys} | {"clip": storage.is_clipped(folder)}
    return folder / f"aepo-{settings.digest(reads)[:8]}.safetensors"


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of modification of each file of the data, by its path in the dataset's folder."""
    stats = {path: path.stat() for path in sorted((folder / "data").rglob("*")) if path.is_file()}
    return {str(path.relative_to(folder)): [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the data."""
    return {name: storage.sha256(folder / name) for name in _stamps(folder)}
