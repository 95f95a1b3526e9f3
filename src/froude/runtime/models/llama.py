"""A Llama-style decoder in plain PyTorch: rotary positions, grouped-query attention, RMSNorm, SwiGLU.

The blocks (`nn.Embedding`, `DecoderLayer`, `Head`) are modules of their own, so that tensor, pipeline and sharded
execution can take them apart. Layers know nothing of batching or caches: they hand queries, keys and values to an
`Attend` and go on with what comes back. Any leading shape works: (batch, tokens, hidden) in training, (tokens,
hidden) for a ragged serving batch.

Touvron et al. (2023), LLaMA: Open and Efficient Foundation Language Models, arXiv:2302.13971.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from froude.core.errors import FroudeError
from froude.core.registry import Source
from froude.models.architecture import Architecture

source = Source("Touvron et al.", 2023, "LLaMA: Open and Efficient Foundation Language Models", "arXiv:2302.13971")

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``attend(layer, q, k, v)``: q is (..., tokens, heads, head_dim), k and v have KV heads; returns the shape of q."""

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines, each (..., tokens, head_dim): what positions do to queries and keys."""


ROPE_THETA = 10000.0  # Su et al. (2021), arXiv:2104.09864
NORM_EPS = 1e-5


def check_runnable(architecture: Architecture) -> None:
    """Refuse what these blocks do not compute.

    Raises:
        FroudeError: naming the feature.
    """
    unsupported = {
        "experts": architecture.experts is not None,
        f"positions {architecture.positions!r}": architecture.positions != "rope",
        "sliding_window": architecture.sliding_window is not None,
        "embedding_norm": architecture.embedding_norm,
    }
    for feature, present in unsupported.items():
        if present:
            raise FroudeError(f"model: {architecture.name!r} has {feature}, which the PyTorch model cannot run")


def causal_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token sees itself and what came before it in its own row: training, and the reference for serving."""
    q, k, v = (x.transpose(-2, -3) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(-2, -3)


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """Rotary embedding of ``positions`` (Su et al. 2021, RoFormer, arXiv:2104.09864), halves convention."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions.to(torch.float32).unsqueeze(-1) * torch.cat([frequency, frequency])
    return angle.cos(), angle.sin()


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn ``x`` (..., tokens, heads, head_dim) by each token's angles."""
    cos, sin = (part.unsqueeze(-2).to(x.dtype) for part in by)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def norm(architecture: Architecture, width: int | None = None) -> nn.Module:
    """The architecture's norm over ``width`` channels (default: the hidden width)."""
    kind = nn.LayerNorm if architecture.norm == "layer" else nn.RMSNorm
    return kind(width or architecture.hidden, eps=NORM_EPS)


class Attention(nn.Module):
    """Grouped-query self-attention. Head counts follow from the projections, so sharded projections just work."""

    def __init__(self, architecture: Architecture, index: int) -> None:
        super().__init__()
        a = architecture
        self.index, self.head_dim = index, a.head_dim
        self.q = nn.Linear(a.hidden, a.query_width, bias=a.attention_bias)
        self.k = nn.Linear(a.hidden, a.kv_width, bias=a.attention_bias)
        self.v = nn.Linear(a.hidden, a.kv_width, bias=a.attention_bias)
        self.out = nn.Linear(a.query_width, a.hidden, bias=a.output_bias)
        self.q_norm = nn.RMSNorm(a.head_dim, eps=NORM_EPS) if a.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(a.head_dim, eps=NORM_EPS) if a.qk_norm else nn.Identity()

    def forward(self, x: Tensor, by: Rotation, attend: Attend) -> Tensor:
        """Attend over what ``attend`` knows of the past."""
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q, self.k, self.v))
        q, k = rotate(self.q_norm(q), by), rotate(self.k_norm(k), by)
        return self.out(attend(self.index, q, k, v).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, GLU Variants Improve Transformer, arXiv:2002.05202), or GELU without a gate."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.gate = nn.Linear(a.hidden, a.ffn, bias=a.mlp_bias) if a.gated else None
        self.up = nn.Linear(a.hidden, a.ffn, bias=a.mlp_bias)
        self.down = nn.Linear(a.ffn, a.hidden, bias=a.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, gate, narrow."""
        wide = self.up(x)
        return self.down(F.gelu(wide) if self.gate is None else F.silu(self.gate(x)) * wide)


class DecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, architecture: Architecture, index: int) -> None:
        super().__init__()
        self.attention_norm = norm(architecture)
        self.attention = Attention(architecture, index)
        self.ffn_norm = norm(architecture)
        self.ffn = FeedForward(architecture)

    def forward(self, x: Tensor, by: Rotation, attend: Attend = causal_attention) -> Tensor:
        """Hidden states in, hidden states out."""
        x = x + self.attention(self.attention_norm(x), by, attend)
        return x + self.ffn(self.ffn_norm(x))


class Head(nn.Module):
    """Final norm and projection to the vocabulary."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.norm = norm(architecture)
        self.project = nn.Linear(architecture.hidden, architecture.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.project(self.norm(x))


class Llama(nn.Module):
    """The whole model on one device, its weights as PyTorch leaves them: `initialise` or load them.

    Raises:
        FroudeError: when the architecture has a feature that these blocks do not compute.
    """

    def __init__(self, architecture: Architecture, rope_theta: float = ROPE_THETA) -> None:
        super().__init__()
        check_runnable(architecture)
        self.architecture, self.rope_theta = architecture, rope_theta
        self.embedding = nn.Embedding(architecture.vocab, architecture.hidden)
        self.layers = nn.ModuleList(DecoderLayer(architecture, i) for i in range(architecture.layers))
        self.head = Head(architecture)
        self.tie()

    def tie(self) -> None:
        """Let head and embedding share one weight where the architecture says so."""
        if self.architecture.tied_embeddings:
            self.head.project.weight = self.embedding.weight

    def hidden_states(self, tokens: Tensor, positions: Tensor, attend: Attend = causal_attention) -> Tensor:
        """What goes into the head: a serving engine needs logits of a few tokens only."""
        by = rotation(positions, self.architecture.head_dim, self.rope_theta)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, by, attend)
        return x

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attend: Attend = causal_attention) -> Tensor:
        """Logits of every token; positions count from 0 unless given."""
        if positions is None:
            positions = torch.arange(tokens.shape[-1], device=tokens.device)
        return self.head(self.hidden_states(tokens, positions, attend))


def initialise(model: nn.Module, layers: int, seed: int, std: float = 0.02) -> None:
    """Random weights, equal for equal seeds: normal, projections into the residual narrower by sqrt(2 layers).

    Radford et al. (2019), section 2.3. ``model`` may be any part of a model; norms start at one, biases at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    narrow = std / math.sqrt(2 * layers)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                into_residual = name.endswith(("out.weight", "down.weight"))
                weight.normal_(0.0, narrow if into_residual else std, generator=generator)


def random_llama(architecture: Architecture, seed: int = 0) -> Llama:
    """A model with random weights, ready to run."""
    model = Llama(architecture)
    initialise(model, architecture.layers, seed)
    return model.eval()
