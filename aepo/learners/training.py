"""The one training loop: chunks of steps, draws made a chunk at a time, logs and checkpoints between chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from aepo import files
from aepo.core.networks import generator
from aepo.learners import capture
from aepo.learners.checkpoints import Checkpoints
from aepo.progress import Progress

Draws = dict[str, Tensor]
THREADS = 1  # of a training on the CPU: docs/speed.md has what others would take


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch's threads for a block, or for the calls of the function it decorates."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def adam(learner: Learner, base_rate: float) -> torch.optim.Adam:
    """The optimizer of every stage: fused, its rate a tensor, so that a captured step can change it."""
    device = learner.trained[0].device
    rate = torch.tensor(base_rate, device=device)
    return torch.optim.Adam(learner.trained, lr=rate, fused=True, capturable=device.type == "cuda")


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
            self.optimizer.param_groups[0]["lr"].fill_(rate)
            info = step(self.learner, self.optimizer, _some(draws, i))
            total = _added(total, info)
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
        if self.graph is None:
            warm, rest = slice(self.WARM_UP), slice(self.WARM_UP, None)
            total = self._warm_up(_some(draws, warm), rates[warm])
            if len(rates) > self.WARM_UP:
                self._capture(_some(draws, 0), total)
                total = _added(total, self.run(_some(draws, rest), rates[rest]))
            return total
        for value in self.total.values():
            value.zero_()
        steps = torch.tensor(rates, dtype=torch.float32).to(self.rate.device)
        for i in range(len(rates)):
            for key, value in self.inputs.items():
                value.copy_(draws[key][i])
            self.rate.copy_(steps[i])
            self.graph.replay()
        return {key: value.clone() for key, value in self.total.items()}

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


def _added(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums by name; `first` may be empty."""
    return {key: first[key] + value if key in first else value for key, value in second.items()}


def steps_of(learner: Learner, optimizer: torch.optim.Adam) -> EagerSteps | CapturedSteps:
    """Captured steps on a GPU, eager ones elsewhere."""
    kind = CapturedSteps if learner.trained[0].device.type == "cuda" else EagerSteps
    return kind(learner, optimizer)


@threads(THREADS)
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
    checkpoint ends with the same bytes as an unbroken one; so it takes THREADS threads whatever the process has, and a
    checkpoint made with others is not used. A loss that is not finite raises StudyError.
    """
    device = learner.trained[0].device
    optimizer = adam(learner, base_rate)
    chunk_steps = steps_of(learner, optimizer)
    own = {**(meta or {}), "seeds": list(learner.seeds), "threads": THREADS}
    store = Checkpoints(checkpoints, learner.name, learner.module, optimizer, own) if checkpoints else None
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
