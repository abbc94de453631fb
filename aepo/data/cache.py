"""A dataset's tensors beside its data, so that loading takes no time: checked, memory-mapped, made again where wrong.

What is verified at every load: the CRC-32 of all that the cache holds, and size and time of modification of each file of
the data; where those differ, the SHA-256 of the data is compared with that of the files the cache was made from.
A change of the data that leaves size and time as they were is not noticed. Where the folder cannot be written to, each
load reads the data.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aepo import files, settings
from aepo.data import reading, storage
from aepo.data.tasks import Task

FORMAT = 3
CONSTANT = 1e-3  # a dimension that varies less is left as it is: dividing would blow up what it does later
Cached = tuple[dict[str, Tensor], dict[str, Any]]  # by the names of `Dataset`'s fields; content hash, warnings, files


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
    arrays, box, warnings = reading.transitions(folder, dataset_id, task)
    made = {"content_hash": content_hash(arrays), "warnings": list(warnings), "stamps": stamps, "sha256": hashes}
    for warning in warnings:
        print(f"dataset {dataset_id}: {warning}")
    action = arrays["action"]
    np.clip(2 * (action - box.low) / (box.high - box.low) - 1, -1, 1, out=action)
    mean, std = arrays["state"].mean(0), arrays["state"].std(0)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()} | {
        "state_mean": torch.from_numpy(mean),
        "state_std": torch.from_numpy(np.where(std < CONSTANT, 1.0, std).astype(np.float32)),
        "action_low": torch.as_tensor(box.low, dtype=torch.float32),
        "action_high": torch.as_tensor(box.high, dtype=torch.float32),
    }
    try:
        write(_path(folder, task), tensors, made)
    except (files.StudyError, OSError) as error:
        cause = getattr(error.__cause__ or error, "strerror", None) or error
        print(f"{dataset_id}: no cache was written ({cause}), so each load takes its time")
    return tensors, made


def write(target: Path, tensors: Mapping[str, Tensor], made: Mapping[str, Any]) -> None:
    """Write tensors and what is known of them as safetensors, atomically."""
    content = json.dumps({"made": made, "crc32": _crc32(tensors, made)})
    with files.atomic_path(target) as temporary:
        save_file(dict(tensors), temporary, {"aepo": content})


def read(target: Path) -> Cached | None:
    """Memory-mapped tensors and what was written with them; None where the file is not what was written."""
    try:
        with safe_open(target, framework="pt") as file:
            stored = json.loads(file.metadata()["aepo"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return (tensors, stored["made"]) if stored["crc32"] == _crc32(tensors, stored["made"]) else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()[:16]


def _crc32(tensors: Mapping[str, Tensor], made: Mapping[str, Any]) -> int:
    """CRC-32 of names, shapes and content."""
    crc = zlib.crc32(json.dumps(made, sort_keys=True).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(f"{name} {tuple(tensors[name].shape)}".encode(), crc)
        crc = zlib.crc32(tensors[name].numpy().reshape(-1).data, crc)
    return crc


def _path(folder: Path, task: Task) -> Path:
    """The cache of a dataset as this task reads it."""
    reads = {
        "format": FORMAT,
        "observation_keys": task.observation_keys,
        "dimensions": task.dimensions,
        "env_id": task.env_id,
        "env_kwargs": dict(task.env_kwargs),
        "clip": storage.is_clipped(folder),
    }
    return folder / f"aepo-{settings.digest(reads)[:8]}.safetensors"


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and time of modification of each file of the data, by its path in the dataset's folder."""
    stats = {path: path.stat() for path in sorted((folder / "data").rglob("*")) if path.is_file()}
    return {str(path.relative_to(folder)): [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}


def _sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the data."""
    return {name: storage.sha256(folder / name) for name in _stamps(folder)}
