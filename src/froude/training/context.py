"""Context parallelism: what the ranks that divide a sequence exchange around attention.

A ring hands keys and values on while attention works on those that are here: Liu et al. 2023, Ring Attention,
arXiv:2310.01889. All-to-alls give each rank the whole sequence of some heads and take their outputs back:
Jacobs et al. 2023, DeepSpeed Ulysses, arXiv:2309.14509 (row 194 of the catalogue): a rank of P sends 4 N h / P elements
per layer, against 2 N h around the ring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from froude.core.arrays import Array
from froude.models.architecture import Architecture
from froude.models.operator import Attention, Operator
from froude.timing.cost import Collective
from froude.training.placement import LayoutBatch, Placement
from froude.training.plan import Job, Layout
from froude.training.work import Work, activation_bytes

Ways = Mapping[str, Array]


def objection(arch: Architecture, job: Job, layout: Layout) -> str | None:
    """Why a sequence cannot be divided like this, or None."""
    ranks, tp = layout.context_parallel, layout.tensor_parallel
    if job.seq_len % ranks:
        return f"context_parallel {ranks} does not divide seq_len {job.seq_len}"
    if layout.context_exchange == "ring" or ranks == 1:
        return None
    if arch.latent is not None:
        return f"context_exchange {layout.context_exchange} exchanges heads, which {arch.name!r} compresses"
    if arch.heads % (tp * ranks):
        return f"tensor_parallel x context_parallel {tp * ranks} does not divide heads {arch.heads}"
    kv_heads = max(1, arch.kv_heads // tp)
    if ranks % kv_heads and kv_heads % ranks:
        return f"context_parallel {ranks} and the {kv_heads} kv_heads of a rank do not divide one another"
    return None


def exchanges(arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, ways: Ways) -> tuple[Work, Work]:
    """What a layer's attention exchanges, forward and backward."""
    if not np.any(np.greater(batch.context_parallel, 1)):
        return (), ()
    return (_ring if batch.context_exchange == "ring" else _all_to_all)(arch, job, batch, placement, ways)


def _ring(arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, ways: Ways) -> tuple[Work, Work]:
    """The backward pass sends keys and values round again, and their gradients."""
    tokens = batch.micro_batch * job.seq_len
    size = 2.0 * tokens * arch.kv_width / ways["kv_heads"] * activation_bytes(job)
    group = placement.group("cp")
    pass_on = Collective(kind="all-gather", bytes=size, group=group, name="cp-ring", hides_behind="attention")
    again = replace(pass_on, hides_behind="attention-backward")
    return (pass_on,), (again, replace(again, kind="reduce-scatter", name="cp-ring-gradients"))


def _all_to_all(
    arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, ways: Ways
) -> tuple[Work, Work]:
    """Queries, keys and values there, outputs back; their gradients the other way. Attention waits for all of them."""
    own = batch.micro_batch * job.seq_len / batch.context_parallel * activation_bytes(job)
    kv_heads = np.maximum(arch.kv_heads / ways["kv_heads"], batch.context_parallel)  # every rank needs one
    group = placement.group("cp")

    def exchange(name: str, width: Array, count: int = 1) -> Collective:
        return Collective(kind="all-to-all", bytes=own * width, group=group, name=name, count=count)

    there = exchange("cp-queries", arch.query_width / ways["heads"])
    keys_values = exchange("cp-keys-values", kv_heads * arch.head_dim, count=2)
    back = exchange("cp-outputs", arch.value_width / ways["heads"])
    work = (there, keys_values, back)
    return work, tuple(replace(item, name=f"{item.name}-gradients") for item in work)


def attention_of_rank(op: Operator, batch: LayoutBatch) -> Operator:
    """An operator of a rank; after all-to-alls attention is over the whole sequence, with fewer heads."""
    if batch.context_exchange == "ring" or not isinstance(op, Attention):
        return op
    ranks = batch.context_parallel
    return replace(
        op,
        tokens=op.tokens * ranks,
        pairs=op.pairs * ranks,
        heads=op.heads / ranks,
        kv_heads=np.maximum(op.kv_heads / ranks, 1.0),
    )


def held_ways(arch: Architecture, batch: LayoutBatch, ways: Ways) -> Ways:
    """Pieces per logical axis of what attention keeps: after all-to-alls a rank has one head of keys at least."""
    if batch.context_exchange == "ring":
        return ways
    copies = np.maximum(1.0, batch.context_parallel * ways["kv_heads"] / arch.kv_heads)
    return {**ways, "kv_heads": ways["kv_heads"] / copies}
