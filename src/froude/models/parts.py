"""Pieces from which layers are put together, and the logical axes their rows lie on."""

from __future__ import annotations

from froude.core.arrays import Array
from froude.models.operator import Axes, Elementwise, Matmul

# A token dimension inside the tensor-parallel regions, between them, and on its way through the experts.
INSIDE = "sequence"
BETWEEN = ("sequence", "tokens")
DISPATCHED = ("sequence", "expert_tokens")


def linear(name: str, tokens: Array, k: int, n: int, axes: Axes, dtype: str) -> Matmul:
    """A projection of ``tokens`` rows from width ``k`` to ``n``."""
    return Matmul(name=name, dtype=dtype, m=tokens, k=k, n=n, axes=axes)


def between(name: str, rows: Array, width: int, dtype: str, *, reads: float = 1, flops: float = 1) -> Elementwise:
    """Elementwise work between tensor-parallel regions: its rows are split, its width is not."""
    axes = {"rows": BETWEEN}
    return Elementwise(name=name, dtype=dtype, rows=rows, width=width, reads=reads, flops_per_element=flops, axes=axes)


def inside(name: str, rows: Array, width: int, axis: str, dtype: str, *, flops: float = 1) -> Elementwise:
    """Elementwise work inside a tensor-parallel region: its width is split, its rows are not."""
    axes = {"rows": INSIDE, "width": axis}
    return Elementwise(name=name, dtype=dtype, rows=rows, width=width, flops_per_element=flops, axes=axes)
