"""What can go wrong around a computation, as sentences: out of memory; stored networks that are not what they should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aepo.files import StudyError

REMEDY = "delete it and run its stage again"
NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "alloc_failed")


@contextmanager
def memory(what: str, remedy: str) -> Iterator[None]:
    """Out of memory, of the machine or of its GPU, becomes a StudyError that says where and what to try."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, StudyError) or not (
            isinstance(error, MemoryError) or any(sign in text.lower() for sign in NO_MEMORY)
        ):
            raise
        raise StudyError(f"{what}: out of memory ({text[:160] or 'no block that large'}): {remedy}") from None


def check_tensors(tensors: Mapping[str, Tensor], seeds: int, path: Path) -> None:
    """Stored networks are whole: each tensor has rows for `seeds` seeds, and every number is finite; else StudyError."""
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) % seeds:
            raise StudyError(f"{path}: {name} has the shape {tuple(tensor.shape)}, not {seeds} seeds: {REMEDY}")
        if not torch.isfinite(tensor).all():
            raise StudyError(f"{path}: {name} holds NaN or infinity: {REMEDY}")


def known(meta: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The metadata of stored networks where they name their seeds and settings, else StudyError."""
    seeds, settings = meta.get("seeds"), meta.get("settings")
    well = isinstance(seeds, list) and seeds and all(isinstance(seed, int) for seed in seeds)
    if not well or not isinstance(settings, dict):
        raise StudyError(f"{path} does not name its seeds and settings, so it is no stage of this study: {REMEDY}")
    return meta


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module; StudyError names the first one that is missing, too many, or of another shape."""
    wanted = module.state_dict()
    for name in sorted({*wanted, *tensors}):
        if name not in tensors or name not in wanted:
            raise StudyError(f"{path} {'has an unknown' if name in tensors else 'lacks the'} tensor {name}: {REMEDY}")
        if tensors[name].shape != wanted[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
            raise StudyError(f"{path}: {name} has the shape {shapes}: {REMEDY}")
    module.load_state_dict(tensors)
