"""Kernels measured by shape, in prices: the fitted form times measured over fitted time of measured shapes nearby.

The logarithm of that ratio is averaged over the nearest measured shapes, weighted by inverse squared distance (Shepard
1968, "A two-dimensional interpolation function for irregularly-spaced data", doi:10.1145/800186.810616). Distances are
in doublings of each dimension; within one doubling of a measured shape the ratio counts in full, beyond two the form
stands alone; above the largest measured size of a dimension it is that at the largest.

Tables are rows of a shape and its seconds, by name: ``product.DTYPE.forward``, ``.dgrad``, ``.wgrad`` (m, k, n);
``grouped.DTYPE...`` (m, k, n, experts); ``attention.DTYPE.forward``, ``.backward`` (sequences, queries, cached keys,
heads, heads of keys, head size); ``decode.DTYPE`` (sequences, keys, heads, heads of keys, head size); ``stream`` (bytes
read and written); ``KIND.near``, ``KIND.far`` (ranks, of them in one node, bytes) of collectives inside a scale-up
domain and across its border.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from froude.core.arrays import Array, Floats
from froude.machines.cluster import Group
from froude.models.operator import Attention, Elementwise, GroupedMatmul, LatentAttention, Matmul, Operator
from froude.timing.cost import Collective, CostModel

if TYPE_CHECKING:  # imported where a table is read: it takes longer than most commands
    from scipy.spatial import cKDTree

NEIGHBOURS = 8
REACH = 1.0
"""Doublings from a measured shape within which it counts in full; at twice as many it does not."""
SOFTENING = 1e-3
"""Added to squared distances, so that a measured shape is all but met exactly."""

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Ratios:
    """Logarithms of measured over priced time at points in doublings."""

    tree: cKDTree
    logs: Floats
    highest: Floats

    @classmethod
    def of(cls, points: Floats, priced_s: Floats, measured_s: Floats) -> Ratios:
        """From points (a row each), what the form says of them and what was measured."""
        from scipy.spatial import cKDTree

        sound = (priced_s > 0) & (measured_s > 0) & np.isfinite(priced_s) & np.isfinite(points).all(axis=1)
        points = points[sound]
        return cls(cKDTree(points), np.log(measured_s[sound] / priced_s[sound]), points.max(axis=0))

    def factor(self, *sizes: Array) -> Floats:
        """The ratio at sizes, which may be arrays over candidates."""
        columns = np.broadcast_arrays(*(np.asarray(size, dtype=float) for size in sizes))
        shape = columns[0].shape
        points = np.stack([np.log2(np.maximum(column, 1e-9)).ravel() for column in columns], axis=1)
        points = np.minimum(points, self.highest)
        distinct, where = np.unique(points, axis=0, return_inverse=True)
        count = min(NEIGHBOURS, len(self.logs))
        distance, index = self.tree.query(distinct, k=np.arange(1, count + 1))
        weight = 1.0 / (distance**2 + SOFTENING)
        mean = np.sum(weight * self.logs[index], axis=1) / np.sum(weight, axis=1)
        counts = np.clip(2.0 - distance[:, 0] / REACH, 0.0, 1.0)
        return np.asarray(np.exp(counts * mean)[where.ravel()].reshape(shape), dtype=float)


@dataclass(frozen=True)
class MeasuredTables:
    """Ratios by name of table."""

    ratios: Mapping[str, Ratios]

    @classmethod
    def of(cls, tables: Mapping[str, Table], form: CostModel, domain: int) -> MeasuredTables:
        """Tables next to what a cost model says of isolated kernels, on a network with such scale-up domains."""
        found = {}
        for name, rows in tables.items():
            kind, *rest = name.split(".")
            columns = np.array(rows, dtype=float).T
            shape, measured_s = columns[:-1], columns[-1]
            if kind == "decode" or not len(rows):
                continue
            if kind in ("product", "grouped", "attention", "stream"):
                op = _operator(kind, rest, shape)
                priced = form.operator(op).seconds
                points = list(_coordinates(op))
            else:
                work = _collective(kind, shape, far=rest == ["far"], domain=domain)
                priced, points = form.collective(work).seconds, list(shape)
            stacked = np.stack([np.log2(column) for column in np.broadcast_arrays(*points)], axis=1)
            found[name] = Ratios.of(stacked, np.broadcast_to(priced, measured_s.shape), measured_s)
        return cls(found)

    def operator_factor(self, op: Operator) -> Array | None:
        """What measured kernels near ``op`` took over their price; None where there is no table."""
        ratios = self._of(op)
        return None if ratios is None else ratios.factor(*_coordinates(op))

    def collective_factor(self, collective: Collective, domain: int) -> Array | None:
        """Likewise of a collective on a network with such scale-up domains."""
        near, far = (self.ratios.get(f"{collective.kind}.{level}") for level in ("near", "far"))
        group, size = collective.group, np.maximum(collective.bytes, 1.0)
        inside, ranks = group.inside(domain), 2.0 if collective.kind == "send" else group.ranks
        local = np.greater_equal(inside, 2) if collective.kind == "send" else np.less_equal(group.ranks, inside)
        if near is None and far is None:
            return None
        inner = 1.0 if near is None else near.factor(ranks, 1.0, size)
        outer = 1.0 if far is None else far.factor(ranks, 1.0 if collective.kind == "send" else inside, size)
        return np.where(local, inner, outer)

    def _of(self, op: Operator) -> Ratios | None:
        if isinstance(op, Matmul):
            kind = "grouped" if isinstance(op, GroupedMatmul) else "product"
            direction = op.name.rpartition("-")[2]
            own = self.ratios.get(f"{kind}.{op.dtype}.{direction}") if direction in ("dgrad", "wgrad") else None
            return own or self.ratios.get(f"{kind}.{op.dtype}.forward")
        if isinstance(op, LatentAttention):
            return None
        if isinstance(op, Attention):
            return self.ratios.get(f"attention.{op.dtype}.{'backward' if op.passes > 1.0 else 'forward'}")
        return self.ratios.get("stream") if isinstance(op, Elementwise) else None


def decode_line(tables: Mapping[str, Table]) -> tuple[float, float] | None:
    """Seconds to start decode attention, and bytes/s at which it reads keys and values; None without a table."""
    rows = next((rows for name, rows in tables.items() if name.startswith("decode.") and len(rows) > 1), None)
    if rows is None:
        return None
    batch, keys, _, kv_heads, head_dim, seconds = np.array(rows, dtype=float).T
    read = 2.0 * batch * keys * kv_heads * head_dim * 2.0
    from scipy.optimize import nnls

    (start_s, per_byte), _ = nnls(np.stack([1.0 / seconds, read * 1e-9 / seconds], axis=1), np.ones_like(seconds))
    return (float(start_s), 1e9 / float(per_byte)) if per_byte > 0 else None


def _operator(kind: str, rest: list[str], shape: Floats) -> Operator:
    if kind == "stream":
        return Elementwise(name="stream", rows=shape[0] / 4.0, width=1.0, fusable=False)
    dtype, direction = rest
    if kind == "attention":
        batch, queries, prefix, heads, kv_heads, head_dim = shape
        op = Attention.causal(
            batch=batch, queries=queries, prefix=prefix, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype
        )
        return op.backward()[0] if direction == "backward" else op
    name = kind if direction == "forward" else f"{kind}-{direction}"
    m, k, n = shape[:3]
    if kind == "product":
        return Matmul(name=name, dtype=dtype, m=m, k=k, n=n)
    return GroupedMatmul(
        name=name, dtype=dtype, m=m, k=k, n=n, batch=shape[3], tokens=m * shape[3], experts=shape[3], top_k=1.0
    )


def _coordinates(op: Operator) -> tuple[Array, ...]:
    """What tells shapes apart: dimensions, or totals where an operator may be a ragged batch."""
    if isinstance(op, GroupedMatmul):
        return op.m, op.k, op.n, op.batch
    if isinstance(op, Matmul):
        return np.multiply(op.m, op.batch), op.k, op.n
    if isinstance(op, Attention):
        return np.multiply(op.tokens, op.heads), np.divide(op.pairs, op.tokens), np.square(op.head_dim)
    return (op.bytes_read + op.bytes_written,)


def _collective(kind: str, shape: Floats, *, far: bool, domain: int) -> Collective:
    ranks, inside, size = shape
    # Neighbours so far apart that as many as were measured share a domain.
    stride = np.maximum(1.0, domain / inside) if far else 1.0
    return Collective(kind=kind, bytes=size, group=Group(ranks, stride), name=kind)  # type: ignore[arg-type]
