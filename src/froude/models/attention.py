"""The attention of a decoder layer as operators: multi-head, grouped-query, windowed and latent."""

from __future__ import annotations

import numpy as np

from froude.core.arrays import Array
from froude.models.architecture import Architecture, Latent
from froude.models.operator import Attention, LatentAttention, Operator
from froude.models.parts import BETWEEN, INSIDE, between, inside, linear


def attended_pairs(queries: Array, prefix: Array = 0, window: int | None = None) -> Array:
    """Query-key pairs of one causal sequence: ``queries`` new tokens after ``prefix``, each sees ``window`` at most."""
    return _pairs_up_to(prefix + queries, window) - _pairs_up_to(prefix, window)


def _pairs_up_to(length: Array, window: int | None) -> Array:
    full: Array = length if window is None else np.minimum(length, window)
    return full * (full + 1) / 2 + (length - full) * full


def read_context(queries: Array, prefix: Array = 0, window: int | None = None) -> Array:
    """Key/value tokens that those queries read between them."""
    return queries + (prefix if window is None else np.minimum(prefix, window - 1))


def layer_pairs(arch: Architecture, queries: Array, prefix: Array = 0) -> Array:
    """`attended_pairs` of a model's layer, on average over layers with and without a window."""
    share = arch.windowed_share
    windowed = attended_pairs(queries, prefix, arch.sliding_window) if share else 0.0
    return share * windowed + (1.0 - share) * attended_pairs(queries, prefix)


def layer_context(arch: Architecture, queries: Array, prefix: Array = 0) -> Array:
    """`read_context` of a model's layer, on average over layers with and without a window."""
    share = arch.windowed_share
    windowed = read_context(queries, prefix, arch.sliding_window) if share else 0.0
    return share * windowed + (1.0 - share) * read_context(queries, prefix)


def attention_operators(
    arch: Architecture, *, tokens: Array, pairs: Array, context: Array, dtype: str, sequences: Array | None = None
) -> list[Operator]:
    """From the normed input to the output projection."""
    if arch.latent is not None:
        return _latent(arch, arch.latent, tokens, pairs, context, dtype, sequences)
    h, q, kv = arch.hidden, arch.query_width, arch.kv_width
    operators: list[Operator] = [linear("qkv", tokens, h, q + 2 * kv, {"m": INSIDE, "n": "heads"}, dtype)]
    if arch.qk_norm:
        operators.append(inside("qk-norm", tokens, q + kv, "heads", dtype, flops=4))
    if arch.positions == "rope":
        operators.append(inside("rotary", tokens, q + kv, "heads", dtype, flops=3))
    core = Attention(
        name="attention",
        dtype=dtype,
        tokens=tokens,
        pairs=pairs,
        context=context,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        sequences=sequences,
        axes={"tokens": INSIDE, "pairs": INSIDE, "heads": "heads", "kv_heads": "kv_heads"},
    )
    return [*operators, core, linear("attention-out", tokens, q, h, {"m": INSIDE, "k": "heads"}, dtype)]


def _latent(
    arch: Architecture,
    latent: Latent,
    tokens: Array,
    pairs: Array,
    context: Array,
    dtype: str,
    sequences: Array | None,
) -> list[Operator]:
    """Multi-head latent attention. Down-projections and latents are whole in width on every tensor-parallel rank.

    Where each key meets one query (decoding), the up-projection of keys and values is absorbed into queries and
    outputs, and all heads read the latents; elsewhere keys and values are expanded. Either way the up-projection is
    applied once per new token.
    """
    h, heads = arch.hidden, arch.heads
    absorbed = np.less_equal(pairs, context)
    own_width = (arch.head_dim + latent.value_dim) / 2
    shared_width = (latent.cached + latent.kv_rank) / 2
    ranks = latent.query_rank + latent.kv_rank
    expanded = heads * (arch.head_dim - latent.rope_dim + latent.value_dim)
    return [
        linear("latent-down", tokens, h, latent.query_rank + latent.cached, {"m": BETWEEN}, dtype),
        between("latent-norm", tokens, ranks, dtype, flops=4),
        linear("query-up", tokens, latent.query_rank, arch.query_width, {"m": INSIDE, "n": "heads"}, dtype),
        inside("rotary", tokens, (heads + 1) * latent.rope_dim, "heads", dtype, flops=3),
        linear("key-value-up", tokens, latent.kv_rank, expanded, {"m": INSIDE, "n": "heads"}, dtype),
        LatentAttention(
            name="attention",
            dtype=dtype,
            tokens=tokens,
            pairs=pairs,
            context=context,
            heads=heads,
            kv_heads=heads,
            head_dim=np.where(absorbed, shared_width, own_width),
            cached=latent.cached,
            absorbed=absorbed,
            sequences=sequences,
            axes={"tokens": INSIDE, "pairs": INSIDE, "heads": "heads", "kv_heads": "heads"},
        ),
        linear("attention-out", tokens, arch.value_width, h, {"m": INSIDE, "k": "heads"}, dtype),
    ]
