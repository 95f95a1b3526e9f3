"""What a stack's tensors take on one rank: kept from forward to backward passes, and while a pass runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from froude.core.arrays import Array
from froude.models.architecture import Architecture
from froude.models.operator import BYTES_PER_ELEMENT
from froude.models.transformer import SavedTensor, activation_tensors, head_activation_tensors
from froude.timing.stack import Stack
from froude.training.placement import LayoutBatch
from froude.training.plan import Job, OffloadModule, Recompute, RecomputeModule

Ways = Mapping[str, Array]


class Held(NamedTuple):
    """Bytes of one block and micro-batch: kept for the backward pass, and held only while a pass runs."""

    saved: Array
    transient: Array


def held_gradient_bytes(job: Job, stack: Stack) -> float | None:
    """Bytes per parameter of the gradients in memory; None where they are kept as they are reduced."""
    if stack.gradients_held == "reduced" or job.precision == "fp32":
        return None
    return 6.0 if stack.gradients_held == "deepspeed" and job.precision == "bf16" else 2.0


def layer_held(
    arch: Architecture, job: Job, batch: LayoutBatch, ways: Ways, stack: Stack, *, dense: bool = False
) -> Held:
    """What one layer holds."""
    flash = stack.attention not in ("unfused", "fused-softmax")

    def tensors(recompute: Recompute, gone: tuple[str, ...] = ()) -> list[SavedTensor]:
        saved = activation_tensors(
            arch,
            batch=batch.micro_batch,
            queries=job.seq_len,
            dtype=job.stream_dtype,
            recompute=recompute,
            attention="flash" if flash else "unfused",
            fused=stack.fusion != "unfused",
            fused_activation=stack.fusion != "unfused" and stack.activation == "fused",
            dropout=stack.dropout == "masks",
            keep_gathered=stack.sequence_inputs == "kept",
            weighted=stack.weighting,
            dense=dense,
        )
        saved = [tensor for tensor in saved if not tensor.name.startswith(gone)]
        return [_in_eight_bits(tensor) for tensor in saved] if job.precision == "fp8" else saved

    routed = arch.experts is not None and not dense
    gone = _recomputed(batch.recompute_modules, arch, routed=routed) + _offloaded(batch.offload_modules)
    if stack.host == "compiled" and (batch.recompute == "selective" or "core_attn" in batch.recompute_modules):
        gone += NO_PRODUCT
    saved = _bytes(tensors(batch.recompute, gone), ways)
    # While a layer is recomputed, or is back from the host, what it would have saved exists for that one layer.
    again = _bytes(tensors("none"), ways) - saved
    transient = again + _gradients_of_pass(tensors("none"), arch, job, batch, ways)
    if np.any(batch.offloaded_layers):
        share = batch.offloaded_layers / arch.layers
        return Held(saved * (1.0 - share), transient + saved * share)
    return Held(saved, transient)


def _recomputed(modules: tuple[RecomputeModule, ...], arch: Architecture, *, routed: bool) -> tuple[str, ...]:
    """Beginnings of the names of tensors that recomputing these modules makes up for.

    Norms apart are those of latent attention and of routed layers; others are part of the product that follows. Their
    outputs go, as do those of the experts' activation and of the latents' up-projections. "mlp", "moe" and
    "shared_experts" keep their input only (Megatron-Core, ``TransformerConfig.recompute_modules``).
    """
    names: dict[RecomputeModule, tuple[str, ...]] = {
        "core_attn": ("softmax-",),
        "layernorm": (("qkv-input",) if arch.latent else ()) + (("mlp-input",) if routed else ()),
        "mla_up_proj": ("queries", "keys", "values") if arch.latent else (),
        "mlp": () if routed else ("mlp-activation-input", "mlp-down-input"),
        "moe": ("router-", "experts-", "shared-"),
        "moe_act": ("experts-activation-output", "experts-down-input"),
        "shared_experts": ("shared-",),
    }
    return tuple(name for module in modules for name in names[module])


def _offloaded(modules: tuple[OffloadModule, ...]) -> tuple[str, ...]:
    """Beginnings of the names of tensors that wait in host memory: what these modules keep for themselves."""
    names: dict[OffloadModule, tuple[str, ...]] = {
        "attn_norm": ("input-norm-input",),
        "qkv_linear": ("qkv-input",),
        "core_attn": ("queries", "keys", "values", "softmax-", "log-sum-exp"),
        "attn_proj": ("attention-out-input",),
        "mlp_norm": ("mlp-norm-input",),
        "expert_fc1": ("experts-input",),
        "moe_act": ("experts-activation-input",),
    }
    return tuple(name for module in modules for name in names[module])


def _gradients_of_pass(
    tensors: list[SavedTensor], arch: Architecture, job: Job, batch: LayoutBatch, ways: Ways
) -> Array:
    """Gradients that exist at once in the backward pass of a layer, beside all that it saved.

    The stream's, and those of whatever is widest: inputs and outputs of the activation function, or attention's scores
    before and after the softmax where they are written out. Sequence parallelism gathers the stream twice: the input of
    a product once more, and the gradient before it is scattered.
    """
    stream = batch.micro_batch * job.seq_len / ways.get("sequence", 1) * arch.hidden * _stream_bytes(job)
    wide = _bytes([t for t in tensors if t.part == "activation" or t.name.endswith("-down-input")], ways)
    scores = 2.0 * _bytes([t for t in tensors if t.name == "softmax-output"], ways)
    between = stream / ways.get("tokens", 1) + (2.0 * stream if batch.sequence_parallel else 0.0)
    return between + np.maximum(wide, scores)


NO_PRODUCT = (
    "qkv-input",
    "log-sum-exp",
    "attention-out-input",
    "mlp-input",
    "mlp-down-input",
    "experts-down-input",
    "shared-down-input",
)
"""What a compiled program that saves the outputs of products only makes again: outputs of norms, attention and
activation functions (jax.checkpoint_policies, ``dots_with_no_batch_dims_saveable``; MaxText's "minimal")."""

EIGHT_BITS = ("qkv-input", "mlp-input", "mlp-down-input", "shared-down-input", "experts-input", "experts-down-input")
"""Inputs of products that no other operator keeps in 16 bits."""


def _in_eight_bits(tensor: SavedTensor) -> SavedTensor:
    """FP8 recipes keep the inputs of products as the products read them (docs.nvidia.com, Transformer Engine)."""
    return replace(tensor, bytes=tensor.bytes / 2.0) if tensor.name in EIGHT_BITS else tensor


def head_held(arch: Architecture, job: Job, batch: LayoutBatch, ways: Ways, stack: Stack) -> Held:
    """What the last norm, the output layer and the loss hold.

    A fused loss keeps the logits in the compute type, and makes their gradient. Otherwise there is a copy in fp32
    beside the logits that it was made from. In place, probabilities and then their gradient overwrite it. Copied,
    exponentials stand beside it. The library's keeps log-probabilities and makes two more gradients in fp32.
    """
    if stack.logits == "gathered":
        ways = {**ways, "vocab": 1.0}
    tensors = {
        t.name: t.shard(ways)
        for t in head_activation_tensors(arch, batch=batch.micro_batch, queries=job.seq_len, dtype=job.stream_dtype)
    }
    wide = tensors.pop("logits")
    narrow = wide * _stream_bytes(job) / 4.0
    kept = sum(tensors.values(), start=0.0)
    if stack.loss == "fused":
        return Held(kept + narrow, narrow)
    copies = {"in-place": 0.0, "copied": 1.0, "library": 2.0}[stack.loss]
    return Held(kept + wide, narrow + copies * wide)


def weight_gradient_bytes(parameters: Array, job: Job, stack: Stack) -> Array:
    """The gradient of a block's one matrix before it is added to those of the micro-batches before it.

    DeepSpeed keeps it for the next step but widens it for the sum.
    """
    if stack.accumulation == "fused":
        return 0.0
    widened = stack.gradients_held == "deepspeed" and job.precision == "bf16"
    return parameters * (4.0 if widened else _stream_bytes(job))


def _bytes(tensors: list[SavedTensor], ways: Ways) -> Array:
    return sum((tensor.shard(ways) for tensor in tensors), start=0.0)


def _stream_bytes(job: Job) -> float:
    return BYTES_PER_ELEMENT[job.stream_dtype]
