"""Tensor parallelism with or without sequence parallelism: modules cut along heads, channels and vocabulary.

Attention and feed-forward each stand between two conjugate operations. Without sequence parallelism these are "copy,
and all-reduce the gradient" and "all-reduce, and copy the gradient"; with it, the hidden states between the modules are
split along the sequence and the two become all-gather and reduce-scatter.

Shoeybi et al. (2019), Megatron-LM, arXiv:1909.08053; Korthikanti et al. (2022), Reducing Activation Recomputation in
Large Transformer Models, arXiv:2205.05198.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from froude.core.errors import InvalidValueError
from froude.models.architecture import Architecture
from froude.runtime.models.llama import DecoderLayer


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that hold one model together, and whether they split hidden states along the sequence."""

    ranks: int = 1
    index: int = 0
    sequence_parallel: bool = False
    group: Any = None

    def check(self, architecture: Architecture, seq_len: int) -> None:
        """Refuse what does not divide.

        Raises:
            InvalidValueError: naming the dimension.
        """
        dimensions = {"kv_heads": architecture.kv_heads, "ffn": architecture.ffn, "vocab": architecture.vocab}
        if self.sequence_parallel:
            dimensions["seq_len"] = seq_len
        for name, size in dimensions.items():
            if size % self.ranks:
                below = next(n for n in range(self.ranks, 0, -1) if size % n == 0)
                raise InvalidValueError(
                    "layout.tensor_parallel",
                    self.ranks,
                    f"does not divide {name} {size}; the nearest that does is {below}",
                )

    def gather(self, x: Tensor) -> Tensor:
        """Whole sequences from every rank's piece; dimension 1 is the sequence."""
        batch, length, *rest = x.shape
        pieces = x.new_empty(self.ranks, batch, length, *rest)
        dist.all_gather_single(pieces.flatten(0, 1), x.contiguous(), group=self.group)
        return pieces.transpose(0, 1).reshape(batch, self.ranks * length, *rest)

    def scatter_sum(self, x: Tensor) -> Tensor:
        """This rank's piece of the sequence, summed over the ranks."""
        batch, length, *rest = x.shape
        pieces = x.reshape(batch, self.ranks, length // self.ranks, *rest).transpose(0, 1).contiguous()
        mine = x.new_empty(batch, length // self.ranks, *rest)
        dist.reduce_scatter_single(mine, pieces.flatten(0, 1), group=self.group)
        return mine

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks."""
        x = x.contiguous().clone()
        dist.all_reduce(x, group=self.group)
        return x


class _Enter(torch.autograd.Function):
    """What every rank's part of a module works on: the whole sequence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ways: TensorGroup) -> Tensor:
        ctx.ways = ways
        return ways.gather(x) if ways.sequence_parallel else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (ctx.ways.scatter_sum if ctx.ways.sequence_parallel else ctx.ways.sum)(gradient), None


class _Leave(torch.autograd.Function):
    """The sum of what the ranks' parts computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ways: TensorGroup) -> Tensor:
        ctx.ways = ways
        return (ways.scatter_sum if ways.sequence_parallel else ways.sum)(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.ways.gather(gradient) if ctx.ways.sequence_parallel else gradient, None


class SplitModule(nn.Module):
    """A module whose linear layers were cut: enter, compute the part, leave, add the bias that must be added once."""

    def __init__(self, inner: nn.Module, last: nn.Linear, ways: TensorGroup) -> None:
        super().__init__()
        self.inner, self.ways = inner, ways
        self.bias = last.bias
        last.register_parameter("bias", None)

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """The whole module's output (its piece of the sequence, with sequence parallelism)."""
        x = _Leave.apply(self.inner(_Enter.apply(x, self.ways), *others), self.ways)
        return x if self.bias is None else x + self.bias


class SplitEmbedding(nn.Module):
    """A range of the vocabulary; other tokens are zero here and found on another rank."""

    def __init__(self, whole: nn.Embedding, ways: TensorGroup) -> None:
        super().__init__()
        self.ways = ways
        self.weight = _piece(whole.weight, ways, dim=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states (a piece of the sequence, with sequence parallelism)."""
        size = self.weight.shape[0]
        local = tokens - self.ways.index * size
        missing = (local < 0) | (local >= size)
        found = F.embedding(local.masked_fill(missing, 0), self.weight).masked_fill(missing.unsqueeze(-1), 0.0)
        return _Leave.apply(found, self.ways)


class SplitProjection(nn.Module):
    """Logits of a range of the vocabulary, for the whole sequence."""

    def __init__(self, whole: nn.Linear, ways: TensorGroup) -> None:
        super().__init__()
        self.ways = ways
        self.weight = _piece(whole.weight, ways, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """This rank's logits."""
        return F.linear(_Enter.apply(x, self.ways), self.weight)


class _SplitCrossEntropy(torch.autograd.Function):
    """Cross-entropy over logits of which each rank holds a range of the vocabulary."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, ways: TensorGroup) -> Tensor:
        top = logits.amax(dim=-1)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=ways.group)
        odds = (logits - top.unsqueeze(-1)).exp()
        size = logits.shape[-1]
        local = targets - ways.index * size
        missing = (local < 0) | (local >= size)
        at = local.masked_fill(missing, 0).unsqueeze(-1)
        mine = (logits.gather(-1, at).squeeze(-1) - top).masked_fill(missing, 0.0)
        sums = torch.stack([odds.sum(dim=-1), mine])
        dist.all_reduce(sums, group=ways.group)
        ctx.save_for_backward(odds.div_(sums[0].unsqueeze(-1)), at, missing)
        return (sums[0].log() - sums[1]).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        chances, at, missing = ctx.saved_tensors
        result = chances.scatter_add(-1, at, -(~missing).unsqueeze(-1).to(chances.dtype))
        return result * (gradient / missing.numel()), None, None


def cross_entropy(logits: Tensor, targets: Tensor, ways: TensorGroup) -> Tensor:
    """Mean loss per token in fp32, in nats."""
    flat, aims = logits.float().flatten(0, -2), targets.flatten()
    return F.cross_entropy(flat, aims) if ways.ranks == 1 else _SplitCrossEntropy.apply(flat, aims, ways)


def split_layer(layer: DecoderLayer, ways: TensorGroup) -> None:
    """Cut a layer in place: queries, keys, values and up-projections by output, the others by input."""
    attention, ffn = layer.attention, layer.ffn
    for linear in filter(None, (attention.q, attention.k, attention.v, ffn.up, ffn.gate)):
        linear.weight = _piece(linear.weight, ways, dim=0)
        if linear.bias is not None:
            linear.bias = _piece(linear.bias, ways, dim=0)
    for linear in (attention.out, ffn.down):
        linear.weight = _piece(linear.weight, ways, dim=1)
    layer.add_module("attention", SplitModule(attention, attention.out, ways))
    layer.add_module("ffn", SplitModule(ffn, ffn.down, ways))


def is_split(parameter: Tensor) -> bool:
    """Whether each tensor-parallel rank holds a piece of this parameter (else each holds all of it)."""
    return getattr(parameter, "is_piece", False)


def is_partial(name: str, parameter: Tensor, ways: TensorGroup) -> bool:
    """Whether each rank knows this parameter's gradient only in part, so that it must be summed over the ranks.

    Inside a cut module (norms of queries and keys) each rank sees its own heads; outside (norms, biases) it sees its
    own piece of the sequence, with sequence parallelism.
    """
    if ways.ranks == 1 or is_split(parameter):
        return False
    return ways.sequence_parallel or name.endswith(("q_norm.weight", "k_norm.weight"))


def _piece(weight: Tensor, ways: TensorGroup, dim: int) -> nn.Parameter:
    piece = nn.Parameter(weight.detach().chunk(ways.ranks, dim)[ways.index].clone())
    piece.is_piece = True  # type: ignore[attr-defined]
    return piece
