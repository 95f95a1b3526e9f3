"""How tokens reach their experts and come back: routing, permutation, exchange."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from froude.core.arrays import Array
from froude.models.architecture import Experts
from froude.models.operator import Elementwise, GroupedMatmul, Matmul, Move, Operator, Routing
from froude.timing.cost import Collective
from froude.timing.stack import Stack
from froude.training.placement import LayoutBatch, Placement


def distinct(ranks: Array, picks: Array) -> Array:
    """Ranks that ``picks`` uniform choices fall on, on average: nobody is sent a token twice."""
    return ranks * (1.0 - (1.0 - 1.0 / ranks) ** picks)


def routed_operators(
    operators: Sequence[Operator], experts: Experts, batch: LayoutBatch, stack: Stack, *, bias: bool
) -> list[Operator]:
    """The operators of a layer as the stack's kernels run them.

    One kernel copies every token once per expert it visits, in the order of experts, and back. A rank with several
    experts sorts what the library's all-to-all brought it once more, by expert; a dispatcher that sends each rank one
    copy has the copying done there. PyTorch's own indexing multiplies by probabilities and adds up in passes of their
    own. Counted in Megatron-Core's ``moe_utils.permute`` and ``unpermute``, in passes over the routed tokens.
    """
    result: list[Operator] = []
    for op in operators:
        if isinstance(op, Matmul) and op.name == "router":
            own = op.m / batch.expert_tensor_parallel  # before ranks that share an expert gather their tokens
            result += [replace(op, m=own), Routing(name="routing", dtype="fp32", tokens=own, experts=experts.count)]
        elif isinstance(op, Move):
            result.append(_moved(op, experts, batch, stack))
        elif isinstance(op, Elementwise) and op.name == "experts-activation" and stack.experts == "fused":
            # The up-projection's kernel applies it, and writes what the next product reads, in 8 bits.
            result.append(replace(op, reads=0.0, writes=0.5, fusable=False))
        else:
            result.append(op)
        if op.name == "experts-down" and bias and stack.experts == "streams":
            result.append(_bias(op))
    return result


def _bias(down: Operator) -> Elementwise:
    """Biases of experts times probabilities, in 32 bits: product, sum, joining, cast (Megatron-Core's own)."""
    assert isinstance(down, GroupedMatmul)
    rows = down.m * down.batch
    return Elementwise(name="experts-bias", dtype="fp32", rows=rows, width=down.n, reads=3.5, writes=3.5, fusable=False)


def _moved(op: Move, experts: Experts, batch: LayoutBatch, stack: Stack) -> Move:
    once = 1.0 / experts.top_k  # a pass over the tokens themselves
    if stack.dispatch == "deduplicated":
        arrived = distinct(batch.expert_parallel, experts.top_k) / experts.top_k
        reads, writes = arrived, np.ones_like(arrived)
    else:
        again = np.where(batch.expert_parallel < experts.count, 1.0, 0.0) * (batch.expert_parallel > 1)
        reads, writes = once + again, 1.0 + again
    if stack.permutation == "eager":
        # forward one indexing pass, backward one that adds; on the way back probabilities and an adding scatter
        reads, writes = (reads + 0.5, writes + 0.5) if op.name == "permute" else (reads + 2.0, writes + 2.0)
    if op.name == "unpermute":
        reads, writes = writes, reads
    return replace(op, reads=reads, writes=writes)


def exchange(
    tokens_bytes: Array, experts: Experts, batch: LayoutBatch, placement: Placement, stack: Stack
) -> tuple[tuple[Collective, ...], tuple[Collective, ...]]:
    """Routed tokens to their experts and back, where experts are spread over ranks.

    Args:
        tokens_bytes: the residual stream of a micro-batch, not split over tensor-parallel ranks.
        experts, batch, placement, stack: who sends what to whom, and how.
    """
    size = tokens_bytes * experts.top_k / batch.tensor_parallel
    picks = experts.top_k if stack.dispatch == "deduplicated" else 0
    there = Collective(kind="all-to-all", bytes=size, group=placement.experts(), name="ep-dispatch", picks=picks)
    back = replace(there, name="ep-combine")
    if not np.any(np.greater(batch.expert_tensor_parallel, 1)):
        return (there,), (back,)
    # ranks that share an expert gather each other's tokens, and add up their parts of the result
    whole, group = size * batch.expert_tensor_parallel, placement.group("etp")
    gather = Collective(kind="all-gather", bytes=whole, group=group, name="ep-gather")
    return (there, gather), (replace(gather, kind="reduce-scatter", name="ep-scatter"), back)
