"""Checkpoints of a training, from which it goes on with the same bytes."""

import glob
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aepo import files


class Checkpoints:
    """The last two checkpoints of a training: networks, optimizer state, log and step, as checksummed safetensors.

    No generator is among them: the draws of a chunk follow from (seed, name, chunk) alone.
    """

    def __init__(self, folder: Path, name: str, module: nn.Module, optimizer: torch.optim.Adam, meta: dict[str, Any]):
        self.folder, self.name, self.meta = folder, name, meta
        self.tensors = {f"module.{key}": value for key, value in module.state_dict().items()}
        for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
            self.tensors |= {f"adam.{i}.{key}": value for key, value in optimizer.state[parameter].items()}

    def paths(self) -> list[Path]:
        """Those on disk, oldest first."""
        return sorted(self.folder.glob(_pattern(self.name)))

    def save(self, chunks: int, log: list[Tensor], columns: list[str]) -> None:
        """Write the state after `chunks` chunks and drop all before it but one; what was passed over stays."""
        meta = {**self.meta, "chunks": chunks, "columns": columns}
        path = self.folder / f"{self.name}.{chunks:06d}.safetensors"
        files.save_tensors(path, self.tensors | {"log": torch.stack(log)}, meta)
        for old in [other for other in self.paths() if other <= path][:-2]:
            old.unlink(missing_ok=True)

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
                shapes = {key: tuple(value.shape) for key, value in self.tensors.items()}
                shapes["log"] = (meta.get("chunks"), len(self.meta["seeds"]), len(meta.get("columns", ())))
                for key in sorted({*shapes, *tensors}):
                    found = tensors.get(key, torch.tensor(torch.nan))
                    if tuple(found.shape) != shapes.get(key) or not torch.isfinite(found).all():
                        raise files.StudyError(f"{path} has a wrong shape, no tensor, or no number in {key}")
            except files.StudyError as error:
                print(f"{self.name}: passed over a checkpoint for the one before it, or for the start: {error}")
                continue
            for key, value in self.tensors.items():
                value.copy_(tensors[key])
            return meta["chunks"], list(tensors["log"]), meta["columns"]
        return 0, [], []


def _pattern(name: str) -> str:
    """Glob of the checkpoints of a stage, not of those whose name only begins the same (b1 and b1.5)."""
    return f"{glob.escape(name)}.{'[0-9]' * 6}.safetensors"


def clear_checkpoints(folder: Path, name: str) -> None:
    """Remove the checkpoints of a finished training, whole or half-written."""
    for path in [*folder.glob(_pattern(name)), *folder.glob(f".{_pattern(name)}.*tmp")]:
        path.unlink(missing_ok=True)
