"""Checkpoints of a training, from which it goes on with the same bytes."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aepo import files

ADAM = ("exp_avg", "exp_avg_sq", "step")  # what the optimizer keeps of a parameter


class Checkpoints:
    """The last two checkpoints of a training: networks, optimizer state, log and step, as checksummed safetensors.

    No generator is among them: the draws of a chunk follow from (seed, name, chunk) alone.
    """

    def __init__(self, folder: Path, name: str, module: nn.Module, optimizer: torch.optim.Adam, meta: dict[str, Any]):
        self.folder, self.name, self.module, self.optimizer, self.meta = folder, name, module, optimizer, meta
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]

    def paths(self) -> list[Path]:
        """Those on disk, oldest first."""
        return sorted(self.folder.glob(_pattern(self.name)))

    def save(self, chunks: int, log: list[Tensor], columns: list[str]) -> None:
        """Write the state after `chunks` chunks and drop all but the last two checkpoints."""
        tensors = self._state() | {"log": torch.stack(log)}
        meta = {**self.meta, "chunks": chunks, "columns": columns}
        files.save_tensors(self.folder / f"{self.name}.{chunks:06d}.safetensors", tensors, meta)
        for old in self.paths()[:-2]:
            old.unlink(missing_ok=True)

    def _state(self) -> dict[str, Tensor]:
        """Networks and the optimizer's averages by name; before the first step there are none of the latter."""
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        for i, averages in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{key}": value for key, value in averages.items()}
        return tensors

    def restore(self) -> tuple[int, list[Tensor], list[str]]:
        """Load the newest checkpoint that is whole and of the same settings: chunks, log and its columns, 0 where none."""
        for path in reversed(self.paths()):
            try:
                tensors, meta = files.load_tensors(path)
                changed = [key for key, value in self.meta.items() if meta.get(key) != value]
                if changed:
                    print(f"{self.name}: its checkpoint {path.name} has other {', '.join(changed)} and is not used")
                    path.unlink()
                    continue
                self._check(tensors, meta, path)
            except files.StudyError as error:
                print(f"{self.name}: passed over a checkpoint for the one before it, or for the start: {error}")
                continue
            module = {key.removeprefix("module."): v for key, v in tensors.items() if key.startswith("module.")}
            self.module.load_state_dict(module)
            state = {i: {key: tensors[f"adam.{i}.{key}"] for key in ADAM} for i in range(len(self.parameters))}
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
            return meta["chunks"], list(tensors["log"]), meta["columns"]
        return 0, [], []

    def _check(self, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path) -> None:
        """StudyError where a checkpoint is not of this training: tensors, their shapes, numbers, the log."""
        shapes = {f"module.{key}": value.shape for key, value in self.module.state_dict().items()}
        for i, parameter in enumerate(self.parameters):
            shapes |= {f"adam.{i}.{key}": parameter.shape for key in ADAM} | {f"adam.{i}.step": torch.Size([])}
        chunks, columns = meta.get("chunks"), meta.get("columns")
        well = isinstance(chunks, int) and isinstance(columns, list)
        shapes["log"] = torch.Size([chunks, len(self.meta["seeds"]), len(columns)]) if well else torch.Size([])
        wrong = [key for key in {*shapes, *tensors} if key not in tensors or tensors[key].shape != shapes.get(key)]
        wrong += [key for key, value in tensors.items() if not torch.isfinite(value).all()]
        if wrong or not well:
            raise files.StudyError(f"{path} has a wrong shape, no tensor, or no number in {sorted(wrong)[0]}")


def _pattern(name: str) -> str:
    """Glob of the checkpoints of a stage, not of those whose name only begins the same (b1 and b1.5)."""
    return f"{glob.escape(name)}.{'[0-9]' * 6}.safetensors"


def clear_checkpoints(folder: Path, name: str) -> None:
    """Remove the checkpoints of a finished training, whole or half-written."""
    for path in [*folder.glob(_pattern(name)), *folder.glob(f".{_pattern(name)}.*tmp")]:
        path.unlink(missing_ok=True)
