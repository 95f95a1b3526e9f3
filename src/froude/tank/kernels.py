"""The kernels of a transformer's training step, ready to be timed one by one.

Each is timed as training uses it: its input is at hand, its output goes to memory that was not touched lately, and
backward passes read what was saved long before. So inputs of backward passes, weights and outputs rotate through a
working set that is larger than the processor's cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from froude.runtime.models.llama import ROPE_THETA, causal_attention, rotate, rotation

WORKING_SET = 32e6  # bytes that a benchmark rotates through
MOST_COPIES = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Run = Callable[[], Any]


@dataclass(frozen=True)
class Kernel:
    """One point of a curve.

    Attributes:
        name: ``kernel.dtype.direction``.
        size: where on the curve.
        amount: what one run gets done, in FLOP, elements or bytes: the rate is amount over seconds.
        build: makes the tensors and returns what to run.
        message: it waits for other ranks.
    """

    name: str
    size: int
    amount: float
    build: Callable[[], Run]
    message: bool = False


def kernels() -> Iterator[Kernel]:
    """Everything the quick measurement times."""
    for dtype, sizes in (("fp32", (32, 64, 128, 256, 512, 1024)), ("bf16", (64, 256, 512))):
        for size in sizes:
            for direction in ("forward", "dgrad", "wgrad"):
                yield Kernel(
                    f"matmul.{dtype}.{direction}", size, 2.0 * size**3, _matmul(size, DTYPES[dtype], direction)
                )
    for dtype, lengths in (("fp32", (64, 256, 1024)), ("bf16", (256,))):
        for length in lengths:
            forward_flops = 4.0 * HEADS * HEAD_DIM * _sequences(length) * length * (length + 1) / 2
            for direction, passes in (("forward", 1.0), ("backward", 2.5)):
                build = _attention(length, DTYPES[dtype], direction)
                yield Kernel(f"attention.{dtype}.{direction}", length, passes * forward_flops, build)
    for name, make in (("norm", _norm), ("rotary", _rotary), ("activation", _activation), ("cross-entropy", _loss)):
        for size in (2**14, 2**17, 2**20):
            for direction in ("forward", "backward"):
                yield Kernel(f"{name}.fp32.{direction}", size, size, _both(make, size, direction))
    for size in (2**14, 2**17, 2**20):
        for direction in ("forward", "backward"):
            yield Kernel(f"residual.fp32.{direction}", size, size, _sum(size))
            yield Kernel(f"embedding.fp32.{direction}", size, size, _embedding(size, direction))
    for size in (2**14, 2**18, 2**21):
        yield Kernel("adam.fp32.forward", size, size, _adam(size))


HEADS, HEAD_DIM, WIDTH = 4, 64, 512
VOCABULARY = 4096


def memory_copy(size: int = 2**24) -> Run:
    """Copy ``size`` fp32 elements that no cache holds: reads and writes 4 bytes each."""
    source, target = torch.ones(size), torch.empty(size)
    return lambda: target.copy_(source)


def empty_operator() -> Run:
    """An operator with next to no work: what is left is starting it."""
    x, y = torch.ones(8), torch.empty(8)
    return lambda: torch.add(x, x, out=y)


def _filled(*shape: int, dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Tensor:
    return torch.full(shape, 0.5, dtype=dtype, requires_grad=requires_grad)


def _copies(size_bytes: float) -> int:
    return int(max(2, min(MOST_COPIES, WORKING_SET / size_bytes)))


def _rotating(items: list[Any], run: Callable[[Any], Any], keep: int) -> Run:
    """Run on one item after the other, and hold on to the last results so that new ones take other memory.

    The memory that results take in turn is mapped before anything is timed, as it is in a run after its first steps.
    """
    turn = cycle(items)
    kept: deque[Any] = deque((run(next(turn)) for _ in range(keep)), maxlen=keep)
    return lambda: kept.append(run(next(turn)))


def _matmul(size: int, dtype: torch.dtype, direction: str) -> Callable[[], Run]:
    def build() -> Run:
        copies = _copies(3 * size * size * dtype.itemsize)
        x, g = _filled(size, size, dtype=dtype), _filled(size, size, dtype=dtype)
        cold = [_filled(size, size, dtype=dtype) for _ in range(copies)]
        run = {
            "forward": lambda weight: F.linear(x, weight),
            "dgrad": lambda weight: g @ weight,
            "wgrad": lambda saved: g.t() @ saved,
        }[direction]
        return _rotating(cold, run, copies)

    return build


def _sequences(length: int) -> int:
    return max(1, 1024 // length)


def _attention(length: int, dtype: torch.dtype, direction: str) -> Callable[[], Run]:
    def make() -> tuple[list[Tensor], Callable[..., Tensor]]:
        shape = (_sequences(length), length, HEADS, HEAD_DIM)
        q, k, v = (_filled(*shape, dtype=dtype, requires_grad=True) for _ in range(3))
        return [q, k, v], lambda: causal_attention(0, q, k, v)

    return _passes(make, 4.0 * 1024 * HEADS * HEAD_DIM * 4, direction)


def _both(
    make: Callable[[int], tuple[list[Tensor], Callable[..., Tensor]]], size: int, direction: str
) -> Callable[[], Run]:
    return _passes(lambda: make(size), 8.0 * size, direction)


def _passes(
    make: Callable[[], tuple[list[Tensor], Callable[..., Tensor]]], size_bytes: float, direction: str
) -> Callable[[], Run]:
    """Forward on hot inputs, or backward over graphs built earlier, with a hot gradient."""

    def build() -> Run:
        copies = _copies(size_bytes)
        if direction == "forward":
            _, forward = make()
            return _rotating([None], lambda _: forward(), copies)
        graphs = []
        for _ in range(copies):
            inputs, forward = make()
            graphs.append((forward(), inputs))
        gradient = torch.ones_like(graphs[0][0])
        return _rotating(
            graphs, lambda graph: torch.autograd.grad(graph[0], graph[1], gradient, retain_graph=True), copies
        )

    return build


def _norm(size: int) -> tuple[list[Tensor], Callable[..., Tensor]]:
    norm = nn.RMSNorm(WIDTH)
    x = _filled(1, size // WIDTH, WIDTH, requires_grad=True)
    return [x, norm.weight], lambda: norm(x)


def _rotary(size: int) -> tuple[list[Tensor], Callable[..., Tensor]]:
    rows = size // (HEADS * HEAD_DIM)
    by = rotation(torch.arange(rows), HEAD_DIM, ROPE_THETA)
    x = _filled(1, rows, HEADS, HEAD_DIM, requires_grad=True)
    return [x], lambda: rotate(x, by)


def _activation(size: int) -> tuple[list[Tensor], Callable[..., Tensor]]:
    gate, wide = (_filled(size // WIDTH, WIDTH, requires_grad=True) for _ in range(2))
    return [gate, wide], lambda: F.silu(gate) * wide


def _loss(size: int) -> tuple[list[Tensor], Callable[..., Tensor]]:
    logits = _filled(size // VOCABULARY, VOCABULARY, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (size // VOCABULARY,))
    return [logits], lambda: F.cross_entropy(logits, targets)


def _sum(size: int) -> Callable[[], Run]:
    """A residual is a sum; in the backward pass the gradients of its two branches are summed."""

    def build() -> Run:
        cold = [_filled(size) for _ in range(_copies(8.0 * size))]
        other = _filled(size)
        return _rotating(cold, lambda x: x + other, len(cold))

    return build


def _embedding(size: int, direction: str) -> Callable[[], Run]:
    def build() -> Run:
        table = nn.Embedding(VOCABULARY, WIDTH)
        tokens = torch.randint(0, VOCABULARY, (1, size // WIDTH))
        if direction == "forward":
            return _rotating([tokens], table, _copies(4.0 * size))
        out = table(tokens)
        gradient = torch.ones_like(out)
        table.weight.grad = torch.zeros_like(table.weight)
        return lambda: out.backward(gradient, retain_graph=True)

    return build


def _adam(size: int) -> Callable[[], Run]:
    """AdamW on a flat buffer, and gradients set to zero."""

    def build() -> Run:
        weight = nn.Parameter(torch.zeros(size))
        weight.grad = torch.ones(size)
        optimizer = torch.optim.AdamW([weight], fused=True)

        def run() -> None:
            optimizer.step()
            weight.grad.zero_()  # type: ignore[union-attr]

        return run

    return build
