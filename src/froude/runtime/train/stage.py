"""A model's part on one rank: consecutive layers, with the embedding in front or the head behind where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from froude.models.architecture import Architecture
from froude.runtime.models.llama import ROPE_THETA, DecoderLayer, Head, causal_attention, initialise, rotation
from froude.runtime.train.tensor_parallel import (
    SplitEmbedding,
    SplitProjection,
    TensorGroup,
    cross_entropy,
    split_layer,
)
from froude.training.plan import Recompute

Block = TypeVar("Block", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Share:
    """Which part of the model a virtual stage holds."""

    first: int
    last: int  # one past the last layer
    embedding: bool
    head: bool


def shares(layers: Sequence[int]) -> list[Share]:
    """What each virtual stage holds, first to last, given its number of layers."""
    found, first = [], 0
    for stage, count in enumerate(layers):
        found.append(Share(first, first + count, stage == 0, stage == len(layers) - 1))
        first += count
    return found


class Chunk(nn.Module):
    """One virtual stage. Takes tokens or hidden states; gives hidden states, or the loss when it holds the head.

    Weights depend on the seed and on where in the model a block stands, never on the layout: every layout trains the
    same model.
    """

    def __init__(
        self, architecture: Architecture, share: Share, ways: TensorGroup, recompute: Recompute, seed: int
    ) -> None:
        super().__init__()
        self.architecture, self.share, self.ways, self.recompute = architecture, share, ways, recompute
        a = architecture

        def fresh(block: Block, place: int) -> Block:
            initialise(block, a.layers, seed * 1_000_003 + place)
            return block

        self.embedding: nn.Embedding | SplitEmbedding | None = None
        self.head: Head | None = None
        if share.embedding:
            whole = fresh(nn.Embedding(a.vocab, a.hidden), 0)
            self.embedding = SplitEmbedding(whole, ways) if ways.ranks > 1 else whole
        self.layers = nn.ModuleList()
        for index in range(share.first, share.last):
            layer = fresh(DecoderLayer(a, index), 1 + index)
            if ways.ranks > 1:
                split_layer(layer, ways)
            self.layers.append(layer)
        if share.head:
            head = fresh(Head(a), 1 + a.layers)
            if a.tied_embeddings:
                initialise(head.project, a.layers, seed * 1_000_003)  # the embedding's own numbers
            if ways.ranks > 1:
                head.add_module("project", SplitProjection(head.project, ways))
            if a.tied_embeddings and self.embedding is not None:
                head.project.weight = self.embedding.weight
            self.head = head

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """Hidden states after the last layer, or the mean loss per token."""
        length = x.shape[1]
        if self.embedding is not None:
            x = self.embedding(x)
        elif self.ways.sequence_parallel:
            length *= self.ways.ranks
        by = tuple(part.to(x.dtype) for part in rotation(torch.arange(length), self.architecture.head_dim, ROPE_THETA))
        attend = causal_attention
        if self.recompute == "selective" and torch.is_grad_enabled():
            attend = partial(checkpoint, causal_attention, use_reentrant=False)
        for layer in self.layers:
            if self.recompute == "full" and torch.is_grad_enabled():
                x = checkpoint(layer, x, by, attend, use_reentrant=False)
            else:
                x = layer(x, by, attend)
        if self.head is None:
            return x
        assert targets is not None
        return cross_entropy(self.head(x), targets, self.ways)
