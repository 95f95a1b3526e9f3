"""What the blocks of a model do on one rank: operators, blocking communication, what they own and keep.

A model is made of an embedding, layers and a head; a mixture of experts may have some dense layers first. This is where
a technique adds, removes or changes operators and collectives; sizes are arrays over the candidates of a batch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from froude.core.arrays import Array
from froude.models.architecture import Architecture
from froude.models.operator import Attention, Elementwise, Matmul, Operator
from froude.models.parts import INSIDE, between, linear
from froude.models.transformer import embedding_operators, head_operators, layer_operators
from froude.timing.cost import Collective
from froude.timing.stack import Stack
from froude.training.context import attention_of_rank, exchanges, held_ways
from froude.training.experts import exchange, routed_operators
from froude.training.ledger_tensors import head_held, layer_held, weight_gradient_bytes
from froude.training.placement import LayoutBatch, Placement
from froude.training.plan import PRODUCT_DTYPES, Job, RecomputeModule
from froude.training.work import Block, BlockName, Blocks, Work, stream_bytes, stream_dtype


def model_blocks(arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, stack: Stack) -> Blocks:
    """What the model is made of, under Megatron's tensor parallelism (with sequence parallelism).

    Collectives of a layer follow Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.
    """
    blocks: dict[BlockName, Block] = {
        "embedding": _embedding(arch, job, batch, placement, stack),
        "layer": _layer(arch, job, batch, placement, stack),
        "head": _head(arch, job, batch, placement, stack),
    }
    if arch.experts is not None and arch.experts.dense_layers:
        blocks["dense-layer"] = _layer(arch, job, batch, placement, stack, dense=True)
    if arch.mtp_layers:
        blocks["mtp"] = _further_token(arch, job, batch, placement, stack, blocks)
    return {
        name: replace(block, backward=(*block.backward, *_accumulation(block.parameters, job, batch, stack)))
        for name, block in blocks.items()
    }


def _layer(
    arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, stack: Stack, *, dense: bool = False
) -> Block:
    ways = _ways(arch, placement)
    dtype = stream_dtype(job)
    operators = [
        attention_of_rank(_product_dtype(op, job, stack).shard(ways), batch)
        for op in layer_operators(arch, batch=batch.micro_batch, queries=job.seq_len, dtype=dtype, dense=dense)
    ]
    routed = arch.experts is not None and not dense
    if routed and arch.experts is not None:
        operators = routed_operators(operators, arch.experts, batch, stack, bias=arch.mlp_bias)
    out = next(i for i, op in enumerate(operators) if op.name == "attention-out") + 1
    opening, closing = _region_collectives(arch, job, batch, placement)
    attention_opening = opening
    region = attention_region = _region_backward(arch, job, batch, placement)
    if arch.latent is not None:  # ranks compute latents of their own tokens, and exchange those
        share = (arch.latent.query_rank + arch.latent.cached) / arch.hidden
        attention_opening = tuple(replace(c, bytes=c.bytes * share) for c in opening)
        attention_region = tuple(
            replace(c, bytes=c.bytes * share) if "open" in c.name or "input" in c.name else c for c in region
        )
    around, around_backward = exchanges(arch, job, batch, placement, ways)
    # Two regions, attention and MLP, each between its opening and its closing collective. Routed tokens travel to
    # their experts and back instead.
    attention: Work = (*attention_opening, *operators[:out], *around, *closing)
    there, back = _exchange(arch, job, batch, placement, stack) if routed else (opening, closing)
    forward: Work = (*attention, *there, *operators[out:], *back)
    last: Work = (*there, *back) if routed else region
    regions_backward: Work = (*attention_region, *around_backward, *last)
    modules: set[RecomputeModule] = set(batch.recompute_modules)
    if batch.recompute == "selective":
        modules.add("core_attn")
    again: Work = tuple(op for op in operators if _recomputed(op, modules, routed=routed))
    if "moe" in modules and routed:
        again = (*again, *there, *back)
    if batch.recompute == "full":
        again = forward
    if stack.host == "compiled" and not routed:  # nobody reads the layer's last product again: it is left out
        again = tuple(op for op in again if op.name not in ("mlp-down", "mlp-residual"))

    held = layer_held(arch, job, batch, held_ways(arch, batch, ways), stack, dense=dense)
    expert_parameters: Array = 0.0
    if routed and arch.experts is not None:
        pieces = placement.mesh["ep"] * placement.mesh["etp"] if batch.spread_experts else placement.mesh["tp"]
        expert_parameters = arch.experts.count * arch.expert_parameters / pieces
    whole = arch.dense_layer_parameters if dense else arch.layer_parameters
    everywhere = whole - (arch.experts.count * arch.expert_parameters if routed and arch.experts else 0)
    copied = 0 if arch.latent is None else arch.hidden * (arch.latent.query_rank + arch.latent.cached)
    return Block(
        forward=forward,
        backward=(*again, *_reversed(operators), *regions_backward),
        parameters=(everywhere - copied) / placement.mesh["tp"] + copied + expert_parameters,
        saved_bytes=held.saved,
        transient_bytes=held.transient,
        expert_parameters=expert_parameters,
    )


def _further_token(
    arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, stack: Stack, blocks: Blocks
) -> Block:
    """A module that predicts one token further: two norms, a projection of both halves, a layer, and the LM head again.

    DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437, section 2.2; embedding and LM head are those of the model.
    """
    ways = _ways(arch, placement)
    tokens, hidden = batch.micro_batch * job.seq_len, arch.hidden
    joined = [
        _product_dtype(op, job, stack).shard(ways)
        for op in (
            between("mtp-norm", tokens, 2 * hidden, stream_dtype(job), flops=4),
            linear("mtp-projection", tokens, 2 * hidden, hidden, {"m": INSIDE, "n": "ffn"}, stream_dtype(job)),
        )
    ]
    layer, head = blocks["layer"], blocks["head"]
    kept = 3.0 * stream_bytes(arch, job, batch) / ways.get("tokens", 1.0)  # inputs of the norms and of the projection
    return Block(
        forward=(*joined, *layer.forward, *head.forward),
        backward=(*head.backward, *layer.backward, *_reversed(joined)),
        parameters=layer.parameters + arch.mtp_projection_parameters / placement.mesh["tp"],
        saved_bytes=layer.saved_bytes + head.saved_bytes + kept,
        transient_bytes=layer.transient_bytes + head.transient_bytes,
        expert_parameters=layer.expert_parameters,
    )


def _exchange(
    arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, stack: Stack
) -> tuple[Work, Work]:
    """Routed tokens to their experts and back; experts cut by tensor parallelism see the tokens of all its ranks."""
    assert arch.experts is not None
    if batch.spread_experts:
        return exchange(stream_bytes(arch, job, batch), arch.experts, batch, placement, stack)
    return _region_collectives(arch, job, batch, placement)


def _embedding(arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, stack: Stack) -> Block:
    ways = _ways(arch, placement)
    tokens = batch.micro_batch * job.seq_len
    operators = [op.shard(ways) for op in embedding_operators(arch, tokens=tokens, dtype=stream_dtype(job))]
    _, closing = _region_collectives(arch, job, batch, placement)
    mirrored: Work = ()
    if batch.sequence_parallel:
        size = stream_bytes(arch, job, batch)
        mirrored = (Collective(kind="all-gather", bytes=size, group=placement.group("tp"), name="tp-close-backward"),)
    return Block(
        forward=(*operators, *closing),
        backward=(*mirrored, *_reversed(operators)),
        parameters=arch.embedding_parameters / ways["vocab"],
        saved_bytes=0.0,
        transient_bytes=weight_gradient_bytes(arch.embedding_parameters / ways["vocab"], job, stack),
    )


def _head(arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement, stack: Stack) -> Block:
    ways = _ways(arch, placement)
    tokens = batch.micro_batch * job.seq_len
    operators = [
        _product_dtype(op, job, stack).shard(ways)
        for op in head_operators(arch, tokens=tokens, dtype=stream_dtype(job))
    ]
    opening, _ = _region_collectives(arch, job, batch, placement)
    # The vocabulary-parallel loss exchanges a maximum, a sum and the target's logit per token, in fp32.
    loss = Collective(
        kind="all-reduce",
        bytes=tokens / batch.context_parallel * 3 * 4.0,
        group=placement.group("tp"),
        name="tp-loss",
    )
    held = head_held(arch, job, batch, ways, stack)
    own = arch.head_parameters + tied_copy(arch, batch)
    return Block(
        forward=(*opening, *operators, loss),
        backward=(*_reversed(operators), *_region_backward(arch, job, batch, placement)),
        parameters=(own + arch.final_norm_parameters) / ways["vocab"],
        saved_bytes=held.saved,
        transient_bytes=held.transient,
    )


def tied_copy(arch: Architecture, batch: LayoutBatch) -> Array:
    """Parameters of a tied embedding that the head holds a second time: a pipeline puts the two on different stages."""
    if not arch.tied_embeddings:
        return 0.0
    return np.where(batch.pipeline_parallel > 1, float(arch.vocab * arch.hidden), 0.0)


def _ways(arch: Architecture, placement: Placement) -> dict[str, Array]:
    """Pieces per logical axis; heads of grouped queries are repeated where there are fewer of them than ranks."""
    ways = placement.ways
    if "kv_heads" in ways:
        ways["kv_heads"] = np.minimum(ways["kv_heads"], arch.kv_heads)
    return ways


def _recomputed(op: Operator, modules: Collection[RecomputeModule], *, routed: bool) -> bool:
    """Whether it runs again in the backward pass because it belongs to one of these modules."""
    names: dict[RecomputeModule, tuple[str, ...]] = {
        "core_attn": ("attention",),
        "layernorm": ("input-norm", "mlp-norm"),
        "mla_up_proj": ("query-up", "key-value-up"),
        "mlp": () if routed else ("mlp-up", "mlp-activation", "mlp-down"),
        "moe": ("router", "routing", "permute", "experts-", "unpermute", "shared-"),
        "moe_act": ("experts-activation",),
        "shared_experts": ("shared-",),
    }
    return any(op.name in names[m] or op.name.startswith(tuple(n for n in names[m] if n[-1] == "-")) for m in modules)


def _product_dtype(op: Operator, job: Job, stack: Stack) -> Operator:
    """Narrow recipes run the matrix products of the layers in 8 or 4 bits; the rest of the stream stays in 16.

    Router and LM head stay in 16 bits too, and attention unless the stack has it in 8 (NVIDIA 2025, "Pretraining Large
    Language Models with NVFP4", arXiv:2509.25149, section 4, which keeps some layers in 16 bits as well;
    Megatron-Bridge's recipe ``bf16_with_nvfp4_mixed`` does not).
    """
    if job.precision in PRODUCT_DTYPES and isinstance(op, Matmul) and op.name not in ("lm-head", "router"):
        return replace(op, dtype=job.product_dtype)
    if job.product_dtype == "fp8" and isinstance(op, Attention) and stack.attention_products == "narrow":
        return replace(op, dtype="fp8")
    return op


def _reversed(operators: list[Operator]) -> list[Operator]:
    return [part for op in reversed(operators) for part in op.backward()]


def _region_collectives(
    arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement
) -> tuple[tuple[Collective, ...], tuple[Collective, ...]]:
    """What opens and closes a tensor-parallel region in the forward pass."""
    size, tp = stream_bytes(arch, job, batch), placement.group("tp")
    if batch.sequence_parallel:
        return (
            (Collective(kind="all-gather", bytes=size, group=tp, name="tp-open"),),
            (Collective(kind="reduce-scatter", bytes=size, group=tp, name="tp-close"),),
        )
    return (), (Collective(kind="all-reduce", bytes=size, group=tp, name="tp-close"),)


def _region_backward(arch: Architecture, job: Job, batch: LayoutBatch, placement: Placement) -> tuple[Collective, ...]:
    """Of one region: the mirror of the forward pass, and with sequence parallelism the saved input once more."""
    size, tp = stream_bytes(arch, job, batch), placement.group("tp")
    if batch.sequence_parallel:
        return (
            Collective(kind="all-gather", bytes=size, group=tp, name="tp-close-backward"),
            Collective(kind="reduce-scatter", bytes=size, group=tp, name="tp-open-backward"),
            Collective(kind="all-gather", bytes=size, group=tp, name="tp-input-again"),
        )
    return (Collective(kind="all-reduce", bytes=size, group=tp, name="tp-open-backward"),)


def _accumulation(parameters: Array, job: Job, batch: LayoutBatch, stack: Stack) -> tuple[Operator, ...]:
    """Adding a micro-batch's gradients to those of the micro-batches before it, where that is a pass of its own.

    Sharded gradients (ZeRO-2 and 3) are reduced first and added as shards, which is little.
    """
    if stack.accumulation == "fused" or batch.zero_stage >= 2:
        return ()
    micro_batches = job.global_batch_sequences / (batch.data_parallel * batch.micro_batch)
    widened = stack.widens_gradients(job.precision) and job.precision != "fp32"
    return (
        Elementwise(
            name="accumulate",
            dtype="fp32" if widened else stream_dtype(job),
            rows=parameters,
            width=1,
            reads=1.5 if widened else 2.0,
            writes=1.0,
            fusable=False,
            count=1.0 - 1.0 / micro_batches,
        ),
    )
