"""A dataset's tensors beside its data, so that loading takes no time: checked, memory-mapped, made again where wrong.

What is verified when: at every load, the CRC-32 of the whole cache file, and size and time of modification of each file
of the data; where those differ, the SHA-256 of the data is compared with that of the files the cache was made from.
A change of the data that leaves size and time as they were is not noticed. Where the folder cannot be written to, each
load reads the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aepo import files, settings
from aepo.data import checks, reading, storage
from aepo.data.tasks import Task

FORMAT = 2
CONSTANT = 1e-3  # a dimension that varies less is left as it is: dividing would blow up what it does later
DTYPES = {torch.float32: "F32", torch.int64: "I64"}
CHUNK = 1 << 24


def path(folder: Path, task: Task, clip: bool) -> Path:
    """The cache of a dataset as this task reads it."""
    reads = {
        "format": FORMAT,
        "observation_keys": task.observation_keys,
        "dimensions": task.dimensions,
        "env_id": task.env_id,
        "env_kwargs": dict(task.env_kwargs),
        "clip": clip,
    }
    return folder / f"aepo-{settings.digest(reads)[:8]}.safetensors"


def fingerprint(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and time of modification of each file of the data."""
    files = sorted(p for p in (folder / "data").rglob("*") if p.is_file())
    stats = {str(p.relative_to(folder)): p.stat() for p in files}
    return {name: {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats.items()}


def sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of the data."""
    hashes = {}
    for name in fingerprint(folder):
        with open(folder / name, "rb") as file:
            hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def write(target: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a cache as safetensors, atomically and without a copy of the tensors in memory."""
    tensors = dict(sorted(tensors.items(), key=lambda item: (DTYPES[item[1].dtype] != "I64", item[0])))
    header, offset = {}, 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    views = [memoryview(tensor.contiguous().view(-1).numpy()).cast("B") for tensor in tensors.values() if len(tensor)]
    text = json.dumps(meta, sort_keys=True)
    crc = zlib.crc32(text.encode())
    for view in views:
        crc = zlib.crc32(view, crc)
    header["__metadata__"] = {"aepo": text, "crc32": f"{crc:08x}"}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(len(encoded) + 8) % 64)
    with files.atomic_path(target) as temporary, open(temporary, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for view in views:
            file.write(view)


def read(target: Path, verify: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Memory-mapped tensors and what was written with them; None where the file is not what was written."""
    try:
        with safe_open(target, framework="pt") as file:
            stored = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        meta = json.loads(stored["aepo"])
        if verify and _crc(target, stored["aepo"]) != stored["crc32"]:
            return None
    except (SafetensorError, OSError, ValueError, KeyError):
        return None
    return tensors, meta


def _crc(target: Path, text: str) -> str:
    """CRC-32 of the metadata and of all tensors, read in pieces."""
    crc = zlib.crc32(text.encode())
    with open(target, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(CHUNK):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def fetch(folder: Path, dataset_id: str, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The dataset's tensors and what is known of them: from the cache, which is made where it is missing or wrong."""
    target = path(folder, task, storage.clips(folder))
    found = _load(folder, target, dataset_id, say=False)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, files.StudyError):  # a folder of others: no cache will be written either
            stack.enter_context(storage.lock(dataset_id))
        return _load(folder, target, dataset_id, say=True) or build(folder, dataset_id, task)


def _load(folder: Path, target: Path, name: str, say: bool) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The cache where it fits the data; None where there is none or it must be made again."""
    if not target.exists():
        return None
    found = read(target)
    if found is None:
        if say:
            print(f"{name}: its cache is damaged (the checksum does not match), so it is made again")
        return None
    tensors, meta = found
    now = fingerprint(folder)
    if meta["files"] != now:
        if meta["sha256"] != sha256(folder):
            if say:
                print(f"{name}: the data have changed since their cache was made, so it is made again")
            return None
        meta["files"] = now
        _write_quietly(target, tensors, meta, name)
    return tensors, meta


def build(folder: Path, dataset_id: str, task: Task) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the data, check them, write the cache; StudyError, and nothing written, where a check fails."""
    clip = storage.clips(folder)
    files, hashes = fingerprint(folder), sha256(folder)
    arrays, box, warnings = reading.transitions(folder, dataset_id, task, clip)
    meta = {"content_hash": content_hash(arrays), "warnings": list(warnings), "files": files, "sha256": hashes}
    for warning in warnings:
        print(f"dataset {dataset_id}: {warning}")
    for start in range(0, len(arrays["action"]), checks.BLOCK):
        part = arrays["action"][start : start + checks.BLOCK]
        np.clip(2 * (part - box.low) / (box.high - box.low) - 1, -1, 1, out=part)
    mean, std = arrays["state"].mean(0), arrays["state"].std(0)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()} | {
        "state_mean": torch.from_numpy(mean),
        "state_std": torch.from_numpy(np.where(std < CONSTANT, 1.0, std).astype(np.float32)),
        "action_low": torch.as_tensor(box.low, dtype=torch.float32),
        "action_high": torch.as_tensor(box.high, dtype=torch.float32),
    }
    target = path(folder, task, clip)
    if not _write_quietly(target, tensors, meta, dataset_id):
        return tensors, meta
    del tensors, arrays
    return read(target, verify=False)


def _write_quietly(target: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], name: str) -> bool:
    """Write a cache where that is possible; a full disk or a folder of others costs only time, and is said."""
    try:
        write(target, tensors, meta)
    except (files.StudyError, OSError) as error:
        cause = error.__cause__ or error
        print(
            f"{name}: no cache was written ({getattr(cause, 'strerror', None) or cause}), so each load takes its time"
        )
        return False
    return True


def content_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the arrays, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(memoryview(np.ascontiguousarray(arrays[key])).cast("B") if math.prod(arrays[key].shape) else b"")
    return digest.hexdigest()[:16]
