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
from aepo.learners import capture
from aepo.learners.checkpoints import Checkpoints
from aepo.learners.draws import Draws, Random, part
from aepo.progress import Progress

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

    `module` holds every tensor to keep; `trained` the parameters of the optimizer; `draw` returns the random inputs of
    several steps (leading axis: step); `loss(draws of one step)` returns (loss per seed, info per seed); `after_step` moves
    averaged or target networks; `diagnose(draws of one step)` returns more columns of the log `(S,)`, once a chunk.
    """

    name: str
    seeds: tuple[int, ...]
    module: nn.Module
    trained: list[nn.Parameter]
    draw: Callable[[Random], Draws]
    loss: Callable[[Draws], tuple[Tensor, dict[str, Tensor]]]
    after_step: Callable[[], None] = lambda: None
    diagnose: Callable[[Draws], dict[str, Tensor]] = lambda draws: {}


def follow(moving: Sequence[tuple[nn.Module, nn.Module, float]]) -> Callable[[], None]:
    """An `after_step` that moves averaged or target networks toward the trained ones: (target, trained, rate) each."""
    pairs = [(list(a.parameters()), [p.detach() for p in b.parameters()], rate) for a, b, rate in moving]

    def after_step() -> None:
        for target, trained, rate in pairs:
            torch._foreach_lerp_(target, trained, rate)

    return after_step


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


class Steps:
    """The optimizer steps of a training: one by one, or where `captured` replays of one captured as a CUDA graph.

    Draws and rates are copied into the graph's inputs, since captured random numbers would repeat. The first steps are run
    one by one: they warm the kernels up and are steps of the training like any other. Where capture fails it goes on so.
    """

    WARM_UP = 3

    def __init__(self, learner: Learner, base_rate: float, captured: bool | None = None):
        """`captured`: None, on a GPU."""
        self.learner, self.optimizer = learner, adam(learner, base_rate)
        self.captured = self.rate.device.type == "cuda" if captured is None else captured
        self.graph: torch.cuda.CUDAGraph | None = None

    @property
    def rate(self) -> Tensor:
        """The optimizer's learning rate; it takes another tensor where it goes on from a checkpoint."""
        return self.optimizer.param_groups[0]["lr"]

    def run(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        """Steps with the draws `(step, ...)` and a learning rate each; returns the sums of their info `(S,)`."""
        if not self.captured or self.graph:
            return self._replay(draws, rates) if self.captured else self._one_by_one(draws, rates)
        warm, rest = slice(self.WARM_UP), slice(self.WARM_UP, None)
        total = capture.on_side_stream(lambda: self._one_by_one(part(draws, warm), rates[warm]))
        if len(rates) > self.WARM_UP:
            self._capture(part(draws, 0), total)
            total = _added(total, self.run(part(draws, rest), rates[rest]))
        return total

    def _one_by_one(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for i, rate in enumerate(rates):
            self.rate.fill_(rate)
            total = _added(total, step(self.learner, self.optimizer, part(draws, i)))
        return total

    def _replay(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        for value in self.total.values():
            value.zero_()
        steps = torch.tensor(rates, dtype=torch.float32).to(self.rate.device)
        for i in range(len(rates)):
            for key, value in self.inputs.items():
                value.copy_(draws[key][i])
            self.rate.copy_(steps[i])
            self.graph.replay()
        return {key: value.clone() for key, value in self.total.items()}

    def _capture(self, draws: Draws, info: dict[str, Tensor]) -> None:
        self.inputs = {key: value.clone() for key, value in draws.items()}
        self.total = {key: torch.zeros_like(value) for key, value in info.items()}
        self.optimizer.zero_grad(set_to_none=True)

        def one_step() -> None:
            for key, value in step(self.learner, self.optimizer, self.inputs).items():
                self.total[key].add_(value)

        self.graph = capture.graph(one_step, f"{self.learner.name}: its step")
        self.captured = self.graph is not None


def _added(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums by name; `first` may be empty."""
    return {key: first[key] + value if key in first else value for key, value in second.items()}


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
    chunk_steps = Steps(learner, base_rate)
    own = {**(meta or {}), "seeds": list(learner.seeds), "threads": THREADS}
    store = Checkpoints(checkpoints, learner.name, learner.module, chunk_steps.optimizer, own) if checkpoints else None
    first, log, columns = store.restore() if store else (0, [], [])
    chunks = math.ceil(steps / chunk)
    with Progress(learner.name, steps, folder=progress_folder, initial=min(first * chunk, steps)) as progress:
        for index in range(first, chunks):
            count = min(chunk, steps - index * chunk)
            draws = learner.draw(Random(learner.seeds, learner.name, index, like=learner.trained[0], count=count))
            rates = [learning_rate(base_rate, index * chunk + i, steps) for i in range(count)]
            total = chunk_steps.run(draws, rates)
            row = {key: value / count for key, value in total.items()}
            row |= learner.diagnose(part(draws, -1))
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
