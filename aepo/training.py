"""The one training loop: chunks of steps, draws made a chunk at a time, logs and checkpoints between chunks."""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from aepo import runs
from aepo.networks import generator
from aepo.progress import Progress

Draws = dict[str, Tensor]


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of a step for the next one: giving them back to the system doubles a step's time."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@dataclass
class Learner:
    """What one training needs.

    `module` holds every tensor to keep; `trained` the parameters of the optimizer; `draw(generators, count)` returns
    the random inputs of `count` steps (leading axis: step); `loss(draws of one step)` returns (loss per seed, info per
    seed); `after_step` moves averaged or target networks; `diagnose(draws of one step)` returns more columns of the log
    `(S,)`, once a chunk.
    """

    name: str
    seeds: tuple[int, ...]
    module: nn.Module
    trained: list[nn.Parameter]
    draw: Callable[[Sequence[torch.Generator], int], Draws]
    loss: Callable[[Draws], tuple[Tensor, dict[str, Tensor]]]
    after_step: Callable[[], None] = lambda: None
    diagnose: Callable[[Draws], dict[str, Tensor]] = lambda draws: {}


def stack_draws(
    generators: Sequence[torch.Generator], draw: Callable[[torch.Generator], Tensor], dim: int = 1
) -> Tensor:
    """Draw from each seed's own generator and stack along the seed axis."""
    return torch.stack([draw(g) for g in generators], dim)


def learning_rate(base: float, step: int, steps: int) -> float:
    """Cosine decay from `base` to 0."""
    return base * 0.5 * (1 + math.cos(math.pi * step / steps))


def fit(
    learner: Learner,
    steps: int,
    base_rate: float,
    chunk: int,
    checkpoints: Path | None = None,
    meta: dict[str, Any] | None = None,
    progress_folder: Path | None = None,
) -> pd.DataFrame:
    """Train for `steps` steps with Adam and return the log: one row a chunk and seed, means over the chunk.

    The state after each chunk follows from (seeds, settings, chunk number) alone, so a training that goes on from a
    checkpoint ends with the same bytes as an unbroken one. A loss that is not finite raises StudyError.
    """
    keep_freed_memory()
    device = learner.trained[0].device
    optimizer = torch.optim.Adam(learner.trained, lr=base_rate, fused=True)
    store = Checkpoints(checkpoints, learner, optimizer, meta or {}) if checkpoints else None
    first, log = store.restore() if store else (0, [])
    chunks = math.ceil(steps / chunk)
    columns: list[str] = store.columns if store else []
    with Progress(learner.name, steps, folder=progress_folder, initial=min(first * chunk, steps)) as progress:
        for index in range(first, chunks):
            count = min(chunk, steps - index * chunk)
            generators = [generator(seed, learner.name, index, device=device) for seed in learner.seeds]
            draws = learner.draw(generators, count)
            total: dict[str, Tensor] = {}
            for i in range(count):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(base_rate, index * chunk + i, steps)
                loss, info = learner.loss({key: value[i] for key, value in draws.items()})
                optimizer.zero_grad(set_to_none=True)
                loss.sum().backward()
                optimizer.step()
                learner.after_step()
                total = {key: total[key] + value if total else value for key, value in info.items()}
            row = {key: value / count for key, value in total.items()}
            row |= learner.diagnose({key: value[-1] for key, value in draws.items()})
            columns = list(row)
            row = torch.stack(list(row.values()), -1).double().cpu()
            if not torch.isfinite(row).all():
                raise runs.StudyError(
                    f"{learner.name}: the loss is not finite between steps {index * chunk} and {index * chunk + count}; "
                    f"the checkpoint before is kept in {checkpoints}: try a smaller learning_rate"
                )
            log.append(row)
            if store:
                store.save(index + 1, log, columns)
            progress.update(count, **dict(zip(columns, row.mean(0).tolist(), strict=True)))
    frames = [
        {"seed": seed, "step": min((index + 1) * chunk, steps)} | dict(zip(columns, row[s].tolist(), strict=True))
        for index, row in enumerate(log)
        for s, seed in enumerate(learner.seeds)
    ]
    return pd.DataFrame(frames)


class Checkpoints:
    """The last two checkpoints of a training: networks, optimizer state and log, as checksummed safetensors."""

    def __init__(self, folder: Path, learner: Learner, optimizer: torch.optim.Adam, meta: dict[str, Any]):
        self.folder, self.learner, self.optimizer = folder, learner, optimizer
        self.meta = {**meta, "seeds": list(learner.seeds)}
        self.columns: list[str] = []

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.learner.name}.*.safetensors"))

    def save(self, chunks: int, log: list[Tensor], columns: list[str]) -> None:
        """Write the state after `chunks` chunks and drop all but the last two checkpoints."""
        tensors = {f"module.{key}": value for key, value in self.learner.module.state_dict().items()}
        for i, parameter in enumerate(self.learner.trained):
            tensors |= {f"adam.{i}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        tensors["log"] = torch.stack(log)
        meta = {**self.meta, "chunks": chunks, "columns": columns}
        runs.save_tensors(self.folder / f"{self.learner.name}.{chunks:06d}.safetensors", tensors, meta)
        for old in self._paths()[:-2]:
            old.unlink(missing_ok=True)

    def restore(self) -> tuple[int, list[Tensor]]:
        """Load the newest checkpoint that is whole and of the same settings; (0, []) where there is none."""
        for path in reversed(self._paths()):
            try:
                tensors, meta = runs.load_tensors(path)
            except runs.StudyError as error:
                print(f"passed over a checkpoint: {error}")
                continue
            if any(meta.get(key) != value for key, value in self.meta.items()):
                path.unlink()
                continue
            module = {key.removeprefix("module."): v for key, v in tensors.items() if key.startswith("module.")}
            self.learner.module.load_state_dict(module)
            for i, parameter in enumerate(self.learner.trained):
                prefix = f"adam.{i}."
                state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter) for key, value in state.items()
                }
            self.columns = meta["columns"]
            return meta["chunks"], list(tensors["log"])
        return 0, []


def clear_checkpoints(folder: Path, name: str) -> None:
    """Remove the checkpoints of a finished training."""
    for path in folder.glob(f"{name}.*.safetensors"):
        path.unlink(missing_ok=True)
