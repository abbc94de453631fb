"""Random numbers of trainings: each seed's from a generator of its own, so that no seed depends on its neighbours."""

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from aepo.core.networks import generator
from aepo.core.schedule import T_MIN

Draws = dict[str, Tensor]


def part(draws: Draws, which: int | slice) -> Draws:
    """One step, or a slice of the steps, of the draws of several."""
    return {key: value[which] for key, value in draws.items()}


def pick(values: Tensor, index: Tensor) -> Tensor:
    """Values `(S, N, ...)` at each seed's own numbers `(S, ...)`."""
    rows = torch.arange(len(values), device=values.device)
    return values[rows.view(-1, *[1] * (index.ndim - 1)), index]


def weighted_index(chance: Tensor, uniform: Tensor) -> Tensor:
    """Whole numbers drawn by running sums of chances `(S, N)` from uniform numbers: each `(count, S, batch)`."""
    rows = [
        torch.searchsorted(c, u.to(c).contiguous(), right=True) for c, u in zip(chance, uniform.unbind(1), strict=True)
    ]
    return torch.stack(rows, 1).clamp(max=chance.shape[1] - 1)


class Random:
    """Random numbers `(count, S, *shape)` for `count` steps of S seeds, placed as `like`: of (seed, name) alone."""

    def __init__(self, seeds: Sequence[int], *name: object, like: Tensor, count: int = 1):
        self.generators = [generator(seed, *name, device=like.device) for seed in seeds]
        self.count, self.device, self.dtype = count, like.device, like.dtype

    def _stack(self, draw: Callable[[Generator], Tensor]) -> Tensor:
        return torch.stack([draw(g) for g in self.generators], 1)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return self._stack(lambda g: torch.randn(self.count, *shape, generator=g, device=self.device, dtype=self.dtype))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from [0, 1)."""
        return self._stack(lambda g: torch.rand(self.count, *shape, generator=g, device=self.device, dtype=self.dtype))

    def index(self, size: int, *shape: int) -> Tensor:
        """Whole numbers below `size`."""
        return self._stack(lambda g: torch.randint(size, (self.count, *shape), generator=g, device=self.device))

    def subset(self, size: int, count: int) -> Tensor:
        """`count` distinct whole numbers below `size`, of one step: `(S, count)`."""
        return self._stack(lambda g: torch.randperm(size, generator=g, device=self.device)[None, :count])[0]

    def diffusion(self, size: int, batch: int, d: int) -> Draws:
        """What a diffusion loss is made from: `index` below `size`, times `t` in [T_MIN, 1], `noise` of d numbers."""
        index, t = self.index(size, batch), T_MIN + (1 - T_MIN) * self.uniform(batch)
        return {"index": index, "noise": self.normal(batch, d), "t": t}
