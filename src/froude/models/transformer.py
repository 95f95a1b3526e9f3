"""A decoder-only transformer as operators, and the tensors its backward pass keeps.

Logical axes, for `Operator.shard`:

    heads, kv_heads   attention heads (tensor parallelism; as kv_heads run out, pass a smaller ``kv_heads``)
    ffn               inner width of the dense MLP and of shared experts
    vocab             rows of the LM head
    tokens            rows between the tensor-parallel regions (sequence parallelism: norms, residuals, router)
    sequence          every token dimension (context parallelism)
    expert            experts (expert parallelism); the tokens of the group's other ranks come in
    expert_ffn        inner width of one expert (tensor parallelism inside experts)
    expert_tokens     tokens routed by one rank (sequence parallelism without tensor parallelism inside experts)

Dimensions may be arrays over candidates. `layer_operators` takes equal sequences; `ragged_layer_operators` takes
totals, as a serving iteration has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from froude.core.arrays import Array
from froude.models.architecture import Architecture, Experts
from froude.models.operator import (
    BYTES_PER_ELEMENT,
    Attention,
    Axes,
    Elementwise,
    Gather,
    GroupedMatmul,
    Matmul,
    Operator,
)

Recompute = Literal["none", "selective", "full"]
AttentionKernel = Literal["unfused", "flash"]

# A token dimension inside the tensor-parallel regions, between them, and on its way through the experts.
_INSIDE = "sequence"
_BETWEEN = ("sequence", "tokens")
_DISPATCHED = ("sequence", "expert_tokens")


def attended_pairs(queries: Array, prefix: Array = 0, window: int | None = None) -> Array:
    """Query-key pairs of one causal sequence: ``queries`` new tokens after ``prefix``, each sees ``window`` at most."""
    return _pairs_up_to(prefix + queries, window) - _pairs_up_to(prefix, window)


def _pairs_up_to(length: Array, window: int | None) -> Array:
    full: Array = length if window is None else np.minimum(length, window)
    return full * (full + 1) / 2 + (length - full) * full


def read_context(queries: Array, prefix: Array = 0, window: int | None = None) -> Array:
    """Key/value tokens that those queries read between them."""
    return queries + (prefix if window is None else np.minimum(prefix, window - 1))


def layer_operators(
    arch: Architecture,
    *,
    batch: Array,
    queries: Array,
    prefix: Array = 0,
    dtype: str = "bf16",
    dense: bool = False,
) -> list[Operator]:
    """The forward pass of one decoder layer on ``batch`` equal sequences, in order.

    Args:
        arch: the model.
        batch: sequences.
        queries: new tokens of each.
        prefix: tokens of each already in the cache.
        dtype: of weights and activations.
        dense: one of the leading dense layers of a mixture-of-experts model.
    """
    return ragged_layer_operators(
        arch,
        tokens=batch * queries,
        pairs=batch * attended_pairs(queries, prefix, arch.sliding_window),
        context=batch * read_context(queries, prefix, arch.sliding_window),
        dtype=dtype,
        dense=dense,
    )


def ragged_layer_operators(
    arch: Architecture,
    *,
    tokens: Array,
    pairs: Array,
    context: Array,
    dtype: str = "bf16",
    dense: bool = False,
) -> list[Operator]:
    """The forward pass of one decoder layer from totals over a ragged batch.

    Args:
        arch: the model.
        tokens: new tokens of all sequences.
        pairs: query-key pairs attended (`attended_pairs`, summed over sequences).
        context: key/value tokens read (`read_context`, summed over sequences).
        dtype: of weights and activations.
        dense: one of the leading dense layers of a mixture-of-experts model.
    """
    h, q, kv = arch.hidden, arch.query_width, arch.kv_width
    operators: list[Operator] = [
        _between("input-norm", tokens, h, dtype, flops=4),
        _linear("qkv", tokens, h, q + 2 * kv, {"m": _INSIDE, "n": "heads"}, dtype),
    ]
    if arch.qk_norm:
        operators.append(_inside("qk-norm", tokens, q + kv, "heads", dtype, flops=4))
    if arch.positions == "rope":
        operators.append(_inside("rotary", tokens, q + kv, "heads", dtype, flops=3))
    operators += [
        Attention(
            name="attention",
            dtype=dtype,
            tokens=tokens,
            pairs=pairs,
            context=context,
            heads=arch.heads,
            kv_heads=arch.kv_heads,
            head_dim=arch.head_dim,
            axes={"tokens": _INSIDE, "pairs": _INSIDE, "heads": "heads", "kv_heads": "kv_heads"},
        ),
        _linear("attention-out", tokens, q, h, {"m": _INSIDE, "k": "heads"}, dtype),
        _between("attention-residual", tokens, h, dtype, reads=2),
        _between("mlp-norm", tokens, h, dtype, flops=4),
    ]
    if arch.experts is None or dense:
        operators += _mlp(arch, "mlp", tokens, arch.ffn, dtype)
    else:
        operators += _mixture(arch, arch.experts, tokens, dtype)
    operators.append(_between("mlp-residual", tokens, h, dtype, reads=2))
    return operators


def _linear(name: str, tokens: Array, k: int, n: int, axes: Axes, dtype: str) -> Matmul:
    return Matmul(name=name, dtype=dtype, m=tokens, k=k, n=n, axes=axes)


def _between(name: str, rows: Array, width: int, dtype: str, *, reads: float = 1, flops: float = 1) -> Elementwise:
    """Elementwise work between tensor-parallel regions: its rows are split, its width is not."""
    axes = {"rows": _BETWEEN}
    return Elementwise(name=name, dtype=dtype, rows=rows, width=width, reads=reads, flops_per_element=flops, axes=axes)


def _inside(name: str, tokens: Array, width: int, axis: str, dtype: str, *, flops: float = 1) -> Elementwise:
    """Elementwise work inside a tensor-parallel region: its width is split, its rows are not."""
    axes = {"rows": _INSIDE, "width": axis}
    return Elementwise(name=name, dtype=dtype, rows=tokens, width=width, flops_per_element=flops, axes=axes)


def _activation(arch: Architecture, name: str, rows: Array, width: int, axes: Axes, dtype: str) -> Elementwise:
    """GELU, or SiLU times gate: one output element from one or two inputs."""
    reads, flops = (2, 6) if arch.gated else (1, 8)
    return Elementwise(name=name, dtype=dtype, rows=rows, width=width, reads=reads, flops_per_element=flops, axes=axes)


def _mlp(arch: Architecture, name: str, tokens: Array, ffn: int, dtype: str) -> list[Operator]:
    """Gate and up projections in one matmul, the activation, the down projection."""
    wide = (2 if arch.gated else 1) * ffn
    return [
        _linear(f"{name}-up", tokens, arch.hidden, wide, {"m": _INSIDE, "n": "ffn"}, dtype),
        _activation(arch, f"{name}-activation", tokens, ffn, {"rows": _INSIDE, "width": "ffn"}, dtype),
        _linear(f"{name}-down", tokens, ffn, arch.hidden, {"m": _INSIDE, "k": "ffn"}, dtype),
    ]


def _mixture(arch: Architecture, experts: Experts, tokens: Array, dtype: str) -> list[Operator]:
    """Router, permutation, grouped matmuls, weighted return; beside them the shared experts."""
    h, routed = arch.hidden, tokens * experts.top_k
    inner: Axes = {"rows": _DISPATCHED, "width": "expert_ffn"}

    def move(name: str) -> Elementwise:
        axes = {"rows": _DISPATCHED}
        return Elementwise(name=name, dtype=dtype, rows=routed, width=h, fusable=False, axes=axes)

    def grouped(name: str, k: int, n: int, split: str) -> GroupedMatmul:
        axes: Axes = {"tokens": _DISPATCHED, split: "expert_ffn"}
        return GroupedMatmul.routed(
            name=name, dtype=dtype, tokens=tokens, experts=experts.count, top_k=experts.top_k, k=k, n=n, axes=axes
        )

    operators: list[Operator] = [
        _linear("router", tokens, h, experts.count, {"m": _DISPATCHED}, dtype),
        move("permute"),
        grouped("experts-up", h, (2 if arch.gated else 1) * experts.ffn, "n"),
        _activation(arch, "experts-activation", routed, experts.ffn, inner, dtype),
        grouped("experts-down", experts.ffn, h, "k"),
        move("unpermute"),
    ]
    if experts.shared_ffn:
        operators += _mlp(arch, "shared", tokens, experts.shared_ffn, dtype)
    return operators


def embedding_operators(arch: Architecture, *, tokens: Array, dtype: str = "bf16") -> list[Operator]:
    """Token look-up, learned positions and the embedding's norm, where the model has them."""
    h = arch.hidden
    operators: list[Operator] = [
        Gather(name="embedding", dtype=dtype, rows=tokens, width=h, axes={"rows": _INSIDE}),
    ]
    if arch.positions == "learned":
        operators.append(_between("position-embedding", tokens, h, dtype, reads=2))
    if arch.embedding_norm:
        operators.append(_between("embedding-norm", tokens, h, dtype, flops=4))
    return operators


def head_operators(
    arch: Architecture, *, tokens: Array, positions: Array | None = None, dtype: str = "bf16"
) -> list[Operator]:
    """The final norm, the LM head and the softmax over the vocabulary.

    Args:
        arch: the model.
        tokens: tokens that leave the last layer.
        positions: tokens that are sampled from (serving); None is training: all of them, and the loss.
        dtype: of weights and activations.
    """
    scored = tokens if positions is None else positions
    return [
        _between("final-norm", tokens, arch.hidden, dtype, flops=4),
        _linear("lm-head", scored, arch.hidden, arch.vocab, {"m": _INSIDE, "n": "vocab"}, dtype),
        # fp32: read once to find maximum and sum, once more to write probabilities (in training, the gradient).
        Elementwise(
            name="cross-entropy" if positions is None else "sampling",
            dtype="fp32",
            rows=scored,
            width=arch.vocab,
            reads=2,
            flops_per_element=4,
            axes={"rows": _INSIDE, "width": "vocab"},
        ),
    ]


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor kept from the forward pass of one layer for its backward pass.

    Attributes:
        name: which ("qkv-input", "softmax-output").
        bytes: of the whole layer, unsharded.
        axes: logical axes that divide it.
        part: what would recompute it: "norm", "linear" (input of a matmul), "attention-core", "activation", "dropout",
            "router" or "layer" (the layer's input).
    """

    name: str
    bytes: Array
    axes: tuple[str, ...]
    part: Literal["norm", "linear", "attention-core", "activation", "dropout", "router", "layer"]

    def shard(self, ways: Mapping[str, Array]) -> Array:
        """Bytes on one rank when logical axis ``a`` is split ``ways[a]`` ways."""
        kept = self.bytes
        for axis in self.axes:
            kept = kept / ways.get(axis, 1)
        return kept


def activation_tensors(
    arch: Architecture,
    *,
    batch: Array,
    queries: Array,
    dtype: str = "bf16",
    recompute: Recompute = "none",
    attention: AttentionKernel = "flash",
    dropout: bool = False,
    dense: bool = False,
) -> list[SavedTensor]:
    """What one layer keeps for its backward pass, tensor by tensor.

    Follows Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models",
    arXiv:2205.05198, section 4: for a GPT layer with dropout and unfused attention the sum is ``34sbh + 5as^2b`` bytes.
    Flash attention keeps queries, keys, values, output and a log-sum-exp per row instead of the scores. "selective"
    recomputes the attention core; "full" keeps the layer's input only.

    Args:
        arch: the model.
        batch: sequences of the micro-batch.
        queries: tokens of each.
        dtype: of activations.
        recompute: which policy.
        attention: which kernel computes attention.
        dropout: whether the model trains with dropout (its masks take a byte per element).
        dense: one of the leading dense layers of a mixture-of-experts model.
    """
    tokens = batch * queries
    size = BYTES_PER_ELEMENT[dtype]
    stream = tokens * arch.hidden * size
    if recompute == "full":
        return [SavedTensor("layer-input", stream, _BETWEEN, "layer")]
    inside = ("sequence", "heads")
    kv = tokens * arch.kv_width * size
    saved = [
        SavedTensor("input-norm-input", stream, _BETWEEN, "norm"),
        SavedTensor("qkv-input", stream, _BETWEEN, "linear"),
        SavedTensor("queries", tokens * arch.query_width * size, inside, "linear"),
        SavedTensor("keys", kv, ("sequence", "kv_heads"), "linear"),
        SavedTensor("values", kv, ("sequence", "kv_heads"), "linear"),
        SavedTensor("attention-out-input", tokens * arch.query_width * size, inside, "linear"),
    ]
    if arch.qk_norm:
        width = arch.query_width + arch.kv_width
        saved.append(SavedTensor("qk-norm-input", tokens * width * size, inside, "norm"))
    if attention == "flash":
        saved.append(SavedTensor("log-sum-exp", tokens * arch.heads * 4.0, inside, "linear"))
    elif recompute == "none":
        scores = batch * queries * queries * arch.heads
        saved.append(SavedTensor("softmax-output", scores * size, inside, "attention-core"))
        if dropout:
            saved.append(SavedTensor("softmax-dropout-mask", scores * 1.0, inside, "attention-core"))
            saved.append(SavedTensor("softmax-dropout-output", scores * size, inside, "attention-core"))
    if dropout:
        mask = tokens * arch.hidden * 1.0
        saved.append(SavedTensor("attention-dropout-mask", mask, _BETWEEN, "dropout"))
        saved.append(SavedTensor("mlp-dropout-mask", mask, _BETWEEN, "dropout"))
    saved.append(SavedTensor("mlp-norm-input", stream, _BETWEEN, "norm"))
    saved.append(SavedTensor("mlp-input", stream, _BETWEEN, "linear"))
    if arch.experts is None or dense:
        return saved + _saved_mlp(arch, "mlp", tokens * arch.ffn * size, ("sequence", "ffn"))
    experts = arch.experts
    routed = tokens * experts.top_k * size
    moved, inner = _DISPATCHED, (*_DISPATCHED, "expert_ffn")
    saved += [
        SavedTensor("router-probabilities", tokens * experts.count * 4.0, moved, "router"),
        SavedTensor("experts-input", routed * arch.hidden, moved, "linear"),
        *_saved_mlp(arch, "experts", routed * experts.ffn, inner),
        SavedTensor("experts-output", routed * arch.hidden, moved, "router"),
    ]
    if experts.shared_ffn:
        saved += _saved_mlp(arch, "shared", tokens * experts.shared_ffn * size, ("sequence", "ffn"))
    return saved


def _saved_mlp(arch: Architecture, name: str, inner: Array, axes: tuple[str, ...]) -> list[SavedTensor]:
    """Input of the activation (gate and up where gated) and input of the down projection."""
    return [
        SavedTensor(f"{name}-activation-input", inner * (2 if arch.gated else 1), axes, "activation"),
        SavedTensor(f"{name}-down-input", inner, axes, "linear"),
    ]


def head_activation_tensors(
    arch: Architecture, *, batch: Array, queries: Array, dtype: str = "bf16", dropout: bool = False
) -> list[SavedTensor]:
    """What the ends of the model keep: embedding dropout, final norm, LM head and the fp32 logits (same source)."""
    tokens = batch * queries
    stream = tokens * arch.hidden * BYTES_PER_ELEMENT[dtype]
    saved = [
        SavedTensor("final-norm-input", stream, _BETWEEN, "norm"),
        SavedTensor("lm-head-input", stream, _BETWEEN, "linear"),
        SavedTensor("logits", tokens * arch.vocab * 4.0, ("sequence", "vocab"), "activation"),
    ]
    if dropout:
        saved.append(SavedTensor("embedding-dropout-mask", tokens * arch.hidden * 1.0, _BETWEEN, "dropout"))
    return saved
