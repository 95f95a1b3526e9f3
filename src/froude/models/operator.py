"""The `Operator` contract: what is computed, as dimensions from which FLOPs, bytes and shards follow.

Every dimension is a number or an array over candidates; everything derived from them broadcasts. An operator knows
nothing of machines: how long it takes is the business of `froude.timing`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeAlias

import numpy as np

from froude.core.arrays import Array

Axes: TypeAlias = Mapping[str, str | tuple[str, ...]]
"""Dimension (field name) -> the logical axis, or axes, it lies on."""

BYTES_PER_ELEMENT: dict[str, float] = {
    "fp64": 8.0,
    "fp32": 4.0,
    "tf32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5,
    "int4": 0.5,
}


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """One kernel-sized piece of work on one rank.

    Attributes:
        name: what it is in the model ("qkv", "attention", "mlp-up").
        dtype: element type of inputs and outputs; key of `BYTES_PER_ELEMENT`.
        axes: which dimension (field name) lies on which logical axis ("heads", "ffn", "vocab", "tokens", "expert"), or
            on which several. A `Placement` maps logical axes to mesh axes; `shard` divides.
        count: how many times it runs.
    """

    name: str
    dtype: str = "bf16"
    axes: Axes = field(default_factory=dict)
    count: Array = 1

    @property
    @abstractmethod
    def flops(self) -> Array:
        """Floating-point operations of one run (a multiply-add counts two)."""

    @property
    @abstractmethod
    def bytes_read(self) -> Array:
        """Bytes one run must read from device memory, each input once."""

    @property
    @abstractmethod
    def bytes_written(self) -> Array:
        """Bytes one run must write to device memory."""

    @abstractmethod
    def backward(self) -> tuple[Operator, ...]:
        """The operators of its backward pass."""

    def shard(self, ways: Mapping[str, Array]) -> Self:
        """This operator on one rank when logical axis ``a`` is split ``ways[a]`` ways. Whole shards are assumed."""
        changes: dict[str, Any] = {}
        for dim, axes in self.axes.items():
            for axis in (axes,) if isinstance(axes, str) else axes:
                if axis in ways:
                    changes[dim] = changes.get(dim, getattr(self, dim)) / ways[axis]
        return replace(self, **changes) if changes else self

    @property
    def element_bytes(self) -> float:
        """Bytes per element of inputs and outputs."""
        return BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Matmul(Operator):
    """``[m, k] @ [k, n]``, ``batch`` times over.

    ``weight`` says that the ``[k, n]`` operand is a parameter: it has a gradient of its own in the backward pass.
    ``weight_bytes`` is its bytes per element, scales included, where it is stored in another type than ``dtype``.
    """

    m: Array
    k: Array
    n: Array
    batch: Array = 1
    weight: bool = True
    weight_bytes: float | None = None

    @property
    def flops(self) -> Array:
        """2mkn per batch element."""
        return 2.0 * self.m * self.k * self.n * self.batch

    @property
    def bytes_read(self) -> Array:
        """Both operands once."""
        stored = self.element_bytes if self.weight_bytes is None else self.weight_bytes
        return (self.m * self.k * self.element_bytes + self.k * self.n * stored) * self.batch

    @property
    def bytes_written(self) -> Array:
        """The result once."""
        return self.m * self.n * self.batch * self.element_bytes

    def backward(self) -> tuple[Operator, ...]:
        """Gradient of the input ``[m, n] @ [n, k]`` and of the other operand ``[k, m] @ [m, n]``."""
        return (
            replace(self, name=f"{self.name}-dgrad", axes={}, m=self.m, k=self.n, n=self.k),
            replace(self, name=f"{self.name}-wgrad", axes={}, m=self.k, k=self.m, n=self.n),
        )


_RANKS = tuple((i + 0.5) / 12 for i in range(12))  # of experts by popularity, from 0 to 1


@dataclass(frozen=True, kw_only=True)
class GroupedMatmul(Matmul):
    """One matmul per expert, over the tokens routed to it: ``batch`` experts are visited, ``m`` rows each on average.

    Make one with `routed`. Splitting the axis "expert" over ranks leaves each with fewer experts, and brings in the
    tokens that the other ranks of the group route to them: its FLOPs stay, its weights shrink.

    Attributes:
        tokens: tokens of one rank that are routed.
        experts: experts there are.
        top_k: experts each token visits.
        hosts: ranks over which the experts are split.
        popularity: how many times as often the most popular expert is chosen as the least popular one.
    """

    tokens: Array
    experts: Array
    top_k: Array
    hosts: Array = 1
    popularity: float = 1.0

    @classmethod
    def routed(
        cls,
        *,
        name: str,
        tokens: Array,
        experts: Array,
        top_k: Array,
        k: Array,
        n: Array,
        hosts: Array = 1,
        popularity: float = 1.0,
        dtype: str = "bf16",
        axes: Axes | None = None,
    ) -> GroupedMatmul:
        """An expert that a token chooses with probability ``p`` is visited with ``1 - (1 - p) ** tokens``."""
        visited = experts / hosts * _visited(top_k / experts, tokens * hosts, popularity)
        return cls(
            name=name,
            dtype=dtype,
            axes=axes or {},
            m=tokens * top_k / visited,
            k=k,
            n=n,
            batch=visited,
            tokens=tokens,
            experts=experts,
            top_k=top_k,
            hosts=hosts,
            popularity=popularity,
        )

    def shard(self, ways: Mapping[str, Array]) -> Self:
        """This operator on one rank; the axis "expert" spreads experts rather than dividing the work."""
        split = super().shard(ways)
        again = GroupedMatmul.routed(
            name=self.name,
            tokens=split.tokens,
            experts=self.experts,
            top_k=self.top_k,
            k=split.k,
            n=split.n,
            hosts=self.hosts * ways.get("expert", 1),
            popularity=self.popularity,
        )
        return replace(split, m=again.m, batch=again.batch, hosts=again.hosts)

    def chosen(self, popularity: float) -> GroupedMatmul:
        """The same where the most popular expert is chosen so many times as often as the least popular one."""
        share = _visited(self.top_k / self.experts, self.tokens * self.hosts, popularity)
        visited = self.experts / self.hosts * share
        return replace(self, m=self.tokens * self.top_k / visited, batch=visited, popularity=popularity)


def _visited(chance: Array, tokens: Array, popularity: float) -> Array:
    """Share of experts that any of ``tokens`` visits, where a token visits one with ``chance`` on average.

    Chances follow a power law of exponent one: ranked by popularity, experts are chosen geometrically less often.
    """
    if popularity == 1.0:
        return 1.0 - (1.0 - chance) ** tokens
    total: Array = 0.0
    for rank in _RANKS:
        relative = float(np.log(popularity) / (1.0 - 1.0 / popularity) * popularity**-rank)
        total = total + (1.0 - (1.0 - np.minimum(chance * relative, 1.0)) ** tokens)
    return total / len(_RANKS)


@dataclass(frozen=True, kw_only=True)
class Attention(Operator):
    """Softmax attention over a batch of sequences, described by totals so that ragged batches need no padding.

    Attributes:
        tokens: query tokens in all.
        pairs: query-key pairs attended in all (causality and windows already applied).
        context: key/value tokens read in all.
        heads, kv_heads, head_dim: on this rank.
        passes: 1 forward; the backward pass recomputes scores and makes five products where forward makes two: 2.5.
        sequences: equal sequences there are; None for a ragged batch, whose sequences are not known one by one.
    """

    tokens: Array
    pairs: Array
    context: Array
    heads: Array
    kv_heads: Array
    head_dim: Array
    passes: float = 1.0
    sequences: Array | None = None

    @classmethod
    def causal(
        cls,
        *,
        batch: Array,
        queries: Array,
        heads: Array,
        kv_heads: Array,
        head_dim: Array,
        prefix: Array = 0,
        name: str = "attention",
        dtype: str = "bf16",
        axes: Axes | None = None,
    ) -> Attention:
        """Equal sequences: ``queries`` new tokens each, after ``prefix`` tokens already in the cache."""
        pairs = batch * (queries * prefix + queries * (queries + 1) / 2)
        return cls(
            name=name,
            dtype=dtype,
            axes=axes or {},
            tokens=batch * queries,
            pairs=pairs,
            context=batch * (prefix + queries),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            sequences=batch,
        )

    @property
    def flops(self) -> Array:
        """Two products of 2 FLOP per pair, head and channel."""
        return 4.0 * self.pairs * self.heads * self.head_dim * self.passes

    @property
    def bytes_read(self) -> Array:
        """Queries once and keys and values once (the fused kernel; an unfused one adds the scores, see timing)."""
        queries = self.tokens * self.heads * self.head_dim
        keys_values = 2.0 * self.context * self.kv_heads * self.head_dim
        return (queries + keys_values) * self.element_bytes * self.passes

    @property
    def bytes_written(self) -> Array:
        """The output once."""
        return self.tokens * self.heads * self.head_dim * self.element_bytes * self.passes

    def backward(self) -> tuple[Operator, ...]:
        """Five products for two."""
        return (replace(self, name=f"{self.name}-backward", axes={}, passes=2.5 * self.passes),)


@dataclass(frozen=True, kw_only=True)
class LatentAttention(Attention):
    """Attention over compressed keys and values (MLA; DeepSeek-AI, 2024, DeepSeek-V2, arXiv:2405.04434).

    ``head_dim`` is the mean width of the two products. Expanded, each head has keys and values of its own, as in
    training and prefill; ``absorbed``, all heads read the ``cached`` channels of a token, as in decoding.
    """

    cached: Array
    absorbed: Array

    @property
    def bytes_read(self) -> Array:
        """Queries once and either the heads' keys and values or the shared latents once."""
        queries = self.tokens * self.heads * self.head_dim
        own = 2.0 * self.kv_heads * self.head_dim
        keys_values = self.context * np.where(self.absorbed, self.cached, own)
        read: Array = (queries + keys_values) * self.element_bytes * self.passes
        return read


@dataclass(frozen=True, kw_only=True)
class Elementwise(Operator):
    """Memory-bound work on ``rows x width`` elements: norms, activations, residuals, rotary embedding, casts.

    ``reads`` and ``writes`` count whole-tensor passes when every such operation is its own kernel. ``fusable`` says
    that a fusing software stack merges it with its neighbours.
    """

    rows: Array
    width: Array
    reads: Array = 1.0
    writes: Array = 1.0
    flops_per_element: float = 1.0
    fusable: bool = True

    @property
    def flops(self) -> Array:
        """Vector-unit operations."""
        return self.rows * self.width * self.flops_per_element

    @property
    def bytes_read(self) -> Array:
        """``reads`` passes."""
        return self.rows * self.width * self.reads * self.element_bytes

    @property
    def bytes_written(self) -> Array:
        """``writes`` passes."""
        return self.rows * self.width * self.writes * self.element_bytes

    def backward(self) -> tuple[Operator, ...]:
        """Reads the saved inputs as well as the incoming gradient."""
        name = f"{self.name}-backward"
        return (replace(self, name=name, axes={}, reads=self.reads + self.writes, writes=self.reads),)


@dataclass(frozen=True, kw_only=True)
class Move(Elementwise):
    """Rows copied into another order; the backward pass copies their gradients back."""

    fusable: bool = False

    def backward(self) -> tuple[Operator, ...]:
        """What was written is read, and the other way round."""
        return (replace(self, name=f"{self.name}-backward", axes={}, reads=self.writes, writes=self.reads),)


@dataclass(frozen=True, kw_only=True)
class Routing(Operator):
    """Which experts each of ``tokens`` visits, from ``experts`` scores in 32 bits, and where they are."""

    tokens: Array
    experts: Array

    @property
    def flops(self) -> Array:
        """Vector-unit operations."""
        return 8.0 * self.tokens * self.experts

    @property
    def bytes_read(self) -> Array:
        """Scores for the softmax, the choice and the counts."""
        return 3.0 * self.tokens * self.experts * self.element_bytes

    @property
    def bytes_written(self) -> Array:
        """Probabilities and the map of choices."""
        return 2.0 * self.tokens * self.experts * self.element_bytes

    def backward(self) -> tuple[Operator, ...]:
        """As much again."""
        return (replace(self, name=f"{self.name}-backward", axes={}),)


@dataclass(frozen=True, kw_only=True)
class Gather(Operator):
    """Look-up of ``rows`` rows of ``width`` in a table (token embeddings)."""

    rows: Array
    width: Array

    @property
    def flops(self) -> Array:
        """None."""
        return 0.0 * self.rows

    @property
    def bytes_read(self) -> Array:
        """The rows, once."""
        return self.rows * self.width * self.element_bytes

    @property
    def bytes_written(self) -> Array:
        """The rows, once."""
        return self.rows * self.width * self.element_bytes

    def backward(self) -> tuple[Operator, ...]:
        """A scatter-add into the table's gradient."""
        return (replace(self, name=f"{self.name}-scatter", axes={}),)
