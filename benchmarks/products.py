"""The matrix products of a computation, recorded and made again: the part of its time that no better code can save."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ProductRecorder(TorchDispatchMode):
    """Notes shape and strides of both factors of every matrix product of what runs under it."""

    def __init__(self):
        super().__init__()
        self.factors: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            self.factors.append([(tuple(x.shape), x.stride()) for x in args[-2:]])
        elif func.overloadpacket.__name__ == "_linear_pointwise":  # `fast.affine`
            self.factors.append([(tuple(x.shape), x.stride()) for x in (args[0], args[1].t())])
        return func(*args, **(kwargs or {}))


def products_of(run: Callable[[], object], device: str) -> Callable[[], None]:
    """A function that makes the matrix products of `run` again, sizes and layouts the same, and nothing else."""

    @functools.cache
    def factor(shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        return torch.randn(reach, device=device).as_strided(shape, stride)

    with ProductRecorder() as recorder:
        run()
    pairs = [[factor(*layout) for layout in pair] for pair in recorder.factors]

    @torch.no_grad()
    def again() -> None:
        for a, b in pairs:
            torch.matmul(a, b)

    return again
