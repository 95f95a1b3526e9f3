"""What a layer keeps from its forward pass for its backward pass, tensor by tensor.

Korthikanti et al. (2022), "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from froude.core.arrays import Array
from froude.models.architecture import Architecture
from froude.models.operator import BYTES_PER_ELEMENT
from froude.models.parts import BETWEEN, DISPATCHED

Recompute = Literal["none", "selective", "full"]
AttentionKernel = Literal["unfused", "flash"]


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
    fused: bool = True,
    fused_activation: bool | None = None,
    dropout: bool = False,
    keep_gathered: bool = False,
    weighted: Literal["outputs", "activations"] = "outputs",
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
        fused: whether an RMSNorm is one kernel; eager PyTorch computes it in fp32 and keeps the fp32 input and the
            normalised output instead of the input.
        fused_activation: whether a gated activation is one kernel (default: as ``fused``); eager PyTorch keeps the
            activated gate too.
        dropout: whether the model trains with dropout (its masks take a byte per element).
        keep_gathered: whether sequence parallelism keeps the inputs of products as they are gathered.
        weighted: probabilities of routing multiply what experts give, or what goes into their second product.
        dense: one of the leading dense layers of a mixture-of-experts model.
    """
    tokens = batch * queries
    size = BYTES_PER_ELEMENT[dtype]
    stream = tokens * arch.hidden * size
    if recompute == "full":
        return [SavedTensor("layer-input", stream, BETWEEN, "layer")]
    inside = ("sequence", "heads")
    product_input: tuple[str, ...] = ("sequence",) if keep_gathered else BETWEEN
    fused_activation = fused if fused_activation is None else fused_activation
    saved = [
        SavedTensor("input-norm-input", stream, BETWEEN, "norm"),
        SavedTensor("qkv-input", stream, product_input, "linear"),
        *_saved_projections(arch, tokens * size),
        SavedTensor("attention-out-input", tokens * arch.value_width * size, inside, "linear"),
    ]
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
        saved.append(SavedTensor("attention-dropout-mask", mask, BETWEEN, "dropout"))
        saved.append(SavedTensor("mlp-dropout-mask", mask, BETWEEN, "dropout"))
    saved.append(SavedTensor("mlp-norm-input", stream, BETWEEN, "norm"))
    saved.append(SavedTensor("mlp-input", stream, product_input, "linear"))
    if not fused and arch.norm == "rms":
        widened = tokens * arch.hidden * 4.0 - stream
        saved.append(SavedTensor("normalised", 2 * (widened + stream), BETWEEN, "norm"))
    if arch.experts is None or dense:
        return saved + _saved_mlp(arch, "mlp", tokens * arch.ffn * size, ("sequence", "ffn"), fused_activation)
    experts = arch.experts
    routed = tokens * experts.top_k * size
    moved, inner = DISPATCHED, (*DISPATCHED, "expert_ffn")
    saved += [
        SavedTensor("router-probabilities", tokens * experts.count * 4.0, moved, "router"),
        SavedTensor("experts-input", routed * arch.hidden, moved, "linear"),
        *_saved_mlp(arch, "experts", routed * experts.ffn, inner, fused_activation),
    ]
    if weighted == "outputs":
        saved.append(SavedTensor("experts-output", routed * arch.hidden, moved, "router"))
    elif not (fused_activation and arch.gated):  # kernels that multiply too are those of gated functions
        saved.append(SavedTensor("experts-activation-output", routed * experts.ffn, inner, "router"))
    if experts.shared_ffn:
        shared = tokens * experts.shared_ffn * size
        saved += _saved_mlp(arch, "shared", shared, ("sequence", "ffn"), fused_activation)
    return saved


def _saved_projections(arch: Architecture, element: Array) -> list[SavedTensor]:
    """Queries, keys and values, and what their norms keep; ``element`` is the bytes of one channel of all tokens."""
    inside = ("sequence", "heads")
    if arch.latent is not None:
        latent = arch.latent
        ranks = element * (latent.query_rank + latent.kv_rank)
        return [
            SavedTensor("latent-norm-input", ranks, ("sequence",), "norm"),
            SavedTensor("latents", ranks, ("sequence",), "linear"),
            SavedTensor("queries", element * arch.query_width, inside, "linear"),
            SavedTensor("keys", element * arch.query_width, inside, "linear"),
            SavedTensor("values", element * arch.value_width, inside, "linear"),
        ]
    kv = element * arch.kv_width
    saved = [
        SavedTensor("queries", element * arch.query_width, inside, "linear"),
        SavedTensor("keys", kv, ("sequence", "kv_heads"), "linear"),
        SavedTensor("values", kv, ("sequence", "kv_heads"), "linear"),
    ]
    if arch.qk_norm:
        saved.append(SavedTensor("qk-norm-input", element * (arch.query_width + arch.kv_width), inside, "norm"))
    return saved


def _saved_mlp(arch: Architecture, name: str, inner: Array, axes: tuple[str, ...], fused: bool) -> list[SavedTensor]:
    """Input of the activation (gate and up where gated; unfused, the activated gate too) and of the down projection."""
    kept = 1 if not arch.gated else 2 if fused else 3
    return [
        SavedTensor(f"{name}-activation-input", inner * kept, axes, "activation"),
        SavedTensor(f"{name}-down-input", inner, axes, "linear"),
    ]


def head_activation_tensors(
    arch: Architecture, *, batch: Array, queries: Array, dtype: str = "bf16", dropout: bool = False
) -> list[SavedTensor]:
    """What the ends of the model keep: embedding dropout, final norm, LM head and the fp32 logits (same source)."""
    tokens = batch * queries
    stream = tokens * arch.hidden * BYTES_PER_ELEMENT[dtype]
    saved = [
        SavedTensor("final-norm-input", stream, BETWEEN, "norm"),
        SavedTensor("lm-head-input", stream, BETWEEN, "linear"),
        SavedTensor("logits", tokens * arch.vocab * 4.0, ("sequence", "vocab"), "activation"),
    ]
    if dropout:
        saved.append(SavedTensor("embedding-dropout-mask", tokens * arch.hidden * 1.0, BETWEEN, "dropout"))
    return saved
