"""The one training loop: chunks of steps, draws made a chunk at a time, logs and checkpoints between chunks."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

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
    pairs = [(list[Tensor](a.parameters()), [p.detach() for p in b.parameters()], rate) for a, b, rate in moving]

    def after_step() -> None:
        for target, trained, rate in pairs:
            torch._foreach_lerp_(target, trained, rate)

    return after_step


class Steps:
    """The optimizer steps of a training: one by one, or where `captured` replays of one captured as a CUDA graph.

    Draws are copied into the graph, whose own would repeat. The first steps, and where capture fails all, are one by one.
    """

    WARM_UP = 3

    def __init__(self, learner: Learner, captured: bool | None = None):
        """`captured`: None, on a GPU. The rate is a tensor, so that a captured step can change it."""
        device = learner.trained[0].device
        self.learner, self.rate = learner, torch.zeros((), device=device)
        self.captured = device.type == "cuda" if captured is None else captured
        self.optimizer = torch.optim.Adam(learner.trained, self.rate, fused=True, capturable=device.type == "cuda")
        for parameter in learner.trained:  # as the first step would, so that a checkpoint can be copied into it
            averages = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] |= {"step": torch.zeros((), device=device), **averages}
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, draws: Draws) -> dict[str, Tensor]:
        """One optimizer step from the draws of one step; returns the info of its loss. Never waits for the device."""
        loss, info = self.learner.loss(draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        self.optimizer.step()
        self.learner.after_step()
        return info

    def run(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        """Steps with the draws `(step, ...)` and a learning rate each; returns the sums of their info `(S,)`."""
        if not self.captured or self.graph:
            return self._replay(draws, rates) if self.captured else self._one_by_one(draws, rates)
        warm, rest = slice(self.WARM_UP), slice(self.WARM_UP, None)
        total = cast(Draws, capture.on_side_stream(lambda: self._one_by_one(part(draws, warm), rates[warm])))
        if len(rates) > self.WARM_UP:
            self._capture(part(draws, 0), total)
            total = _added(total, self.run(part(draws, rest), rates[rest]))
        return total

    def _one_by_one(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for i, rate in enumerate(rates):
            self.rate.fill_(rate)
            total = _added(total, self.step(part(draws, i)))
        return total

    def _replay(self, draws: Draws, rates: Sequence[float]) -> dict[str, Tensor]:
        for value in self.total.values():
            value.zero_()
        steps = torch.tensor(rates, dtype=torch.float32).to(self.rate.device)
        for i in range(len(rates)):
            for key, value in self.inputs.items():
                value.copy_(draws[key][i])
            self.rate.copy_(steps[i])
            cast(torch.cuda.CUDAGraph, self.graph).replay()
        return {key: value.clone() for key, value in self.total.items()}

    def _capture(self, draws: Draws, info: dict[str, Tensor]) -> None:
        self.inputs = {key: value.clone() for key, value in draws.items()}
        self.total = {key: torch.zeros_like(value) for key, value in info.items()}
        self.optimizer.zero_grad(set_to_none=True)

        def one_step() -> None:
            for key, value in self.step(self.inputs).items():
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
    """Train for `steps` steps with Adam, its rate falling as a cosine; the log has means, one row a chunk and seed.

    The state after each chunk follows from (seeds, settings, chunk number) alone, so a training that goes on from a
    checkpoint ends with the same bytes as an unbroken one. A loss that is not finite raises StudyError.
    """
    chunk_steps, chunks = Steps(learner), math.ceil(steps / chunk)
    own = {**(meta or {}), "seeds": list(learner.seeds), "threads": THREADS}
    store = Checkpoints(checkpoints, learner.name, learner.module, chunk_steps.optimizer, own) if checkpoints else None
    first, log, columns = store.restore() if store else (0, [], [])
    with Progress(learner.name, steps, folder=progress_folder, initial=min(first * chunk, steps)) as progress:
        for index in range(first, chunks):
            start, stop = index * chunk, min((index + 1) * chunk, steps)
            count = stop - start
            draws = learner.draw(Random(learner.seeds, learner.name, index, like=learner.trained[0], count=count))
            rates = [base_rate * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(start, stop)]
            means = {key: value / count for key, value in chunk_steps.run(draws, rates).items()}
            means |= learner.diagnose(part(draws, -1))
            columns, row = list(means), torch.stack(list(means.values()), -1).double().cpu()
            if not all(torch.isfinite(x).all() for x in (row, *learner.module.state_dict().values())):
                bad = [str(s) for s, values in zip(learner.seeds, row, strict=True) if not torch.isfinite(values).all()]
                whose, kept = f" of seed {', '.join(bad)}" if bad else "", store.paths() if store else []
                last = f"; the last good checkpoint is kept, {kept[-1]}" if kept else ""
                problem = f"the loss{whose} is not finite between steps {start} and {stop}{last}"
                remedy = "try a smaller learning_rate, and look at the data (notebook 03_dataset)"
                raise files.StudyError(f"{learner.name}: {problem}: {remedy}")
            log.append(row)
            if store:
                store.save(index + 1, log, columns)
            progress.update(count, **dict(zip(columns, row.mean(0).tolist(), strict=True)))
    return pd.DataFrame(
        {"seed": seed, "step": min((index + 1) * chunk, steps)} | dict(zip(columns, values.tolist(), strict=True))
        for index, row in enumerate(log)
        for seed, values in zip(learner.seeds, row, strict=True)
    )
