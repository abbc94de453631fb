"""The one training loop: chunks of steps, draws made a chunk at a time, logs and checkpoints between chunks."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from aepo import files
from aepo.core.networks import generator
from aepo.learners import capture
from aepo.progress import Progress

Draws = dict[str, Tensor]
ADAM = ("exp_avg", "exp_avg_sq")


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
    `(S,)`, once a chunk; `after_chunk(first step of the chunk, steps)` keeps snapshots in `module`.
    """

    name: str
    seeds: tuple[int, ...]
    module: nn.Module
    trained: list[nn.Parameter]
    draw: Callable[[Sequence[torch.Generator], int], Draws]
    loss: Callable[[Draws], tuple[Tensor, dict[str, Tensor]]]
    after_step: Callable[[], None] = lambda: None
    diagnose: Callable[[Draws], dict[str, Tensor]] = lambda draws: {}
    after_chunk: Callable[[int, int], None] = lambda begun, steps: None


def stack_draws(
    generators: Sequence[torch.Generator], draw: Callable[[torch.Generator], Tensor], dim: int = 1
) -> Tensor:
    """Draw from each seed's own generator and stack along the seed axis."""
    return torch.stack([draw(g) for g in generators], dim)


def learning_rate(base: float, step: int, steps: int) -> float:
    """Cosine decay from `base` to 0."""
    return base * 0.5 * (1 + math.cos(math.pi * step / steps))


def adam(learner: Learner, base_rate: float) -> torch.optim.Adam:
    """The optimizer of every stage: fused; on a GPU its rate is a tensor, so that a captured step can change it."""
    device = learner.trained[0].device
    if device.type == "cuda":
        rate = torch.tensor(base_rate, device=device)
        return torch.optim.Adam(learner.trained, lr=rate, fused=True, capturable=True)
    return torch.optim.Adam(learner.trained, lr=base_rate, fused=True)


def step(learner: Learner, optimizer: torch.optim.Adam, draws: Draws) -> dict[str, Tensor]:
    """One optimizer step from the draws of one step; returns the info of its loss. Never waits for the device."""
    loss, info = learner.loss(draws)
    optimizer.zero_grad(set_to_none=True)
    loss.sum().backward()
    optimizer.step()
    learner.after_step()
    return info


class EagerSteps:
    """Runs the steps of a chunk one by one."""

    def __init__(self, learner: Learner, optimizer: torch.optim.Adam):
        self.learner, self.optimizer = learner, optimizer

    def run(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        """Steps with the draws `(step, ...)` and a learning rate each; returns the sums of their info `(S,)`."""
        total: dict[str, Tensor] = {}
        for i, rate in enumerate(rates):
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            info = step(self.learner, self.optimizer, _some(draws, i))
            total = {key: total[key] + value if total else value for key, value in info.items()}
        return total


class CapturedSteps:
    """The step captured once as a CUDA graph and replayed; draws and rates are copied into its inputs.

    The draws come from outside, since captured random numbers would repeat. The first steps are run eagerly: they warm
    the kernels up and are steps of the training like any other. Where capture fails it goes on eagerly and says so.
    """

    WARM_UP = 3

    def __init__(self, learner: Learner, optimizer: torch.optim.Adam):
        self.eager = EagerSteps(learner, optimizer)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.failed = False

    def run(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        """As `EagerSteps.run`."""
        if self.failed:
            return self.eager.run(draws, rates)
        warm: dict[str, Tensor] = {}
        if self.graph is None:
            warm = self._warm_up(_some(draws, slice(self.WARM_UP)), rates[: self.WARM_UP])
            draws, rates = _some(draws, slice(self.WARM_UP, None)), rates[self.WARM_UP :]
            if not rates:
                return warm
            self._capture(_some(draws, 0), warm)
            if self.failed:
                rest = self.eager.run(draws, rates)
                return {key: value + warm[key] for key, value in rest.items()}
        for value in self.total.values():
            value.zero_()
        steps = torch.tensor(rates, dtype=torch.float32).to(self.rate.device)
        for i in range(len(rates)):
            for key, value in self.inputs.items():
                value.copy_(draws[key][i])
            self.rate.copy_(steps[i])
            self.graph.replay()
        return {key: value + warm.get(key, 0) for key, value in self.total.items()}

    def _warm_up(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        return capture.on_side_stream(lambda: self.eager.run(draws, rates))

    def _capture(self, draws: Draws, info: dict[str, Tensor]) -> None:
        learner, optimizer = self.eager.learner, self.eager.optimizer
        self.rate = optimizer.param_groups[0]["lr"]
        self.inputs = {key: value.clone() for key, value in draws.items()}
        self.total = {key: torch.zeros_like(value) for key, value in info.items()}
        optimizer.zero_grad(set_to_none=True)

        def one_step() -> None:
            for key, value in step(learner, optimizer, self.inputs).items():
                self.total[key].add_(value)

        self.graph = capture.graph(one_step, f"{learner.name}: its step")
        self.failed = self.graph is None


def _some(draws: Draws, which: int | slice) -> Draws:
    """One step, or a slice of the steps, of a chunk's draws."""
    return {key: value[which] for key, value in draws.items()}


def steps_of(learner: Learner, optimizer: torch.optim.Adam) -> EagerSteps | CapturedSteps:
    """Captured steps on a GPU, eager ones elsewhere."""
    captured = learner.trained[0].device.type == "cuda"
    return CapturedSteps(learner, optimizer) if captured else EagerSteps(learner, optimizer)


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
    optimizer = adam(learner, base_rate)
    chunk_steps = steps_of(learner, optimizer)
    store = Checkpoints(checkpoints, learner, optimizer, meta or {}) if checkpoints else None
    first, log = store.restore() if store else (0, [])
    chunks = math.ceil(steps / chunk)
    columns: list[str] = store.columns if store else []
    with Progress(learner.name, steps, folder=progress_folder, initial=min(first * chunk, steps)) as progress:
        for index in range(first, chunks):
            count = min(chunk, steps - index * chunk)
            generators = [generator(seed, learner.name, index, device=device) for seed in learner.seeds]
            draws = learner.draw(generators, count)
            rates = [learning_rate(base_rate, index * chunk + i, steps) for i in range(count)]
            total = chunk_steps.run(draws, rates)
            learner.after_chunk(index * chunk, steps)
            row = {key: value / count for key, value in total.items()}
            row |= learner.diagnose(_some(draws, -1))
            columns = list(row)
            row = torch.stack(list(row.values()), -1).double().cpu()
            if not (torch.isfinite(row).all() and _finite(learner.module)):
                steps_seen = f"between steps {index * chunk} and {index * chunk + count}"
                raise files.StudyError(_diverged(learner, row, steps_seen, store))
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


def _finite(module: nn.Module) -> bool:
    """Whether every number of a module is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values())


def _diverged(learner: Learner, row: Tensor, steps: str, store: Checkpoints | None) -> str:
    """The sentence for a training whose loss or networks `(S, columns)` are no numbers any more."""
    bad = [str(seed) for seed, values in zip(learner.seeds, row, strict=True) if not torch.isfinite(values).all()]
    whose = f" of seed {', '.join(bad)}" if bad else ""
    kept = [path.name for path in store.paths()] if store else []
    last = f"; the last good checkpoint is kept, {store.folder / kept[-1]}" if kept else ""
    return (
        f"{learner.name}: the loss{whose} is not finite {steps}{last}: try a smaller learning_rate, "
        "and look at the data (notebook 03_dataset)"
    )


class Checkpoints:
    """The last two checkpoints of a training: networks, optimizer state, log and step, as checksummed safetensors.

    No generator is among them: the draws of a chunk follow from (seed, name, chunk) alone.
    """

    def __init__(self, folder: Path, learner: Learner, optimizer: torch.optim.Adam, meta: dict[str, Any]):
        self.folder, self.learner, self.optimizer = folder, learner, optimizer
        self.meta = {**meta, "seeds": list(learner.seeds)}
        self.columns: list[str] = []

    def paths(self) -> list[Path]:
        """Those on disk, oldest first."""
        return sorted(self.folder.glob(_pattern(self.learner.name)))

    def save(self, chunks: int, log: list[Tensor], columns: list[str]) -> None:
        """Write the state after `chunks` chunks and drop all but the last two checkpoints."""
        tensors = self._state() | {"log": torch.stack(log)}
        meta = {**self.meta, "chunks": chunks, "columns": columns}
        files.save_tensors(self.folder / f"{self.learner.name}.{chunks:06d}.safetensors", tensors, meta)
        for old in self.paths()[:-2]:
            old.unlink(missing_ok=True)

    def _state(self) -> dict[str, Tensor]:
        """Networks and the optimizer's averages by name; before the first step there are none of the latter."""
        tensors = {f"module.{key}": value for key, value in self.learner.module.state_dict().items()}
        for i, parameter in enumerate(self.learner.trained):
            tensors |= {f"adam.{i}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors

    def restore(self) -> tuple[int, list[Tensor]]:
        """Load the newest checkpoint that is whole and of the same settings; (0, []) where there is none."""
        name = self.learner.name
        for path in reversed(self.paths()):
            try:
                tensors, meta = files.load_tensors(path)
                changed = [key for key, value in self.meta.items() if meta.get(key) != value]
                if changed:
                    print(f"{name}: its checkpoint {path.name} has other {', '.join(changed)} and is not used")
                    path.unlink()
                    continue
                self._check(tensors, meta, path)
            except files.StudyError as error:
                print(f"{name}: passed over a checkpoint for the one before it, or for the start: {error}")
                continue
            module = {key.removeprefix("module."): v for key, v in tensors.items() if key.startswith("module.")}
            self.learner.module.load_state_dict(module)
            for i, parameter in enumerate(self.learner.trained):
                prefix = f"adam.{i}."
                state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
                on_device = self.optimizer.defaults["capturable"]
                self.optimizer.state[parameter] = {
                    key: value if key == "step" and not on_device else value.to(parameter)
                    for key, value in state.items()
                }
            self.columns = meta["columns"]
            return meta["chunks"], list(tensors["log"])
        return 0, []

    def _check(self, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path) -> None:
        """StudyError where a checkpoint is not of this training: tensors, their shapes, numbers, the log."""
        shapes = {f"module.{key}": value.shape for key, value in self.learner.module.state_dict().items()}
        for i, parameter in enumerate(self.learner.trained):
            shapes |= {f"adam.{i}.{key}": parameter.shape for key in ADAM} | {f"adam.{i}.step": torch.Size([])}
        chunks, columns = meta.get("chunks"), meta.get("columns")
        well = isinstance(chunks, int) and isinstance(columns, list)
        shapes["log"] = torch.Size([chunks, len(self.learner.seeds), len(columns)]) if well else torch.Size([])
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
