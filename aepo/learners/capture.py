"""Functions of tensors as CUDA graphs: captured once a shape and replayed; where capture fails they run as they are."""

from collections.abc import Callable

import torch
from torch import Tensor


def graph(run: Callable[[], object], name: str) -> torch.cuda.CUDAGraph | None:
    """`run` captured as a CUDA graph, to `replay`; None, said in a line, where it cannot be."""
    captured = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(captured):
            run()
    except RuntimeError as error:
        print(f"{name} could not be captured as a CUDA graph ({error}): it runs step by step")
        return None
    return captured


def on_side_stream(run: Callable[[], object]) -> object:
    """`run()` on a stream of its own, as is asked for before a capture: kernels are loaded, buffers allocated."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = run()
    torch.cuda.current_stream().wait_stream(stream)
    return result


class CapturedCalls:
    """A function of tensors `(S, B, ...)`, row by row in B, captured for each B rounded up to a power of two."""

    def __init__(self, run: Callable[..., Tensor], name: str):
        self.run, self.name = run, name
        self.captured: dict[tuple, tuple[torch.cuda.CUDAGraph, list[Tensor], list[Tensor]]] = {}
        self.failed = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        count = inputs[0].shape[1]
        rows = 1 << (count - 1).bit_length()
        shape = (rows, *((len(value), *value.shape[2:]) for value in inputs))
        if shape not in self.captured and not self.failed:
            self._capture(shape, [value.new_zeros(len(value), rows, *value.shape[2:]) for value in inputs])
        if self.failed:
            return self.run(*inputs)
        captured, held, output = self.captured[shape]
        for buffer, value in zip(held, inputs, strict=True):
            buffer[:, :count].copy_(value)
        captured.replay()
        return output[-1][:, :count].clone()

    def _capture(self, shape: tuple, held: list[Tensor]) -> None:
        output: list[Tensor] = []
        on_side_stream(lambda: self.run(*held))
        if captured := graph(lambda: output.append(self.run(*held)), self.name):
            self.captured[shape] = (captured, held, output)
        self.failed = captured is None
