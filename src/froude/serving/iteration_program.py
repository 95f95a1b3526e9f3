"""A serving iteration as a `Program`: the steps of every layer on lanes that share one device.

As engines run it there is one lane: step after step. A technique cuts the batch into parts and puts their steps on
several lanes; what they then gain from each other, and lose by being smaller, follows from what the steps demand of the
device. A device here stands for all devices of one replica, which do the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from froude.core.arrays import Array, Floats
from froude.machines.cluster import Group
from froude.models.operator import Attention, Operator
from froude.models.transformer import ragged_layer_operators
from froude.program.evaluate import evaluate
from froude.program.program import Action, Lane, Program
from froude.serving.iteration import IterationTime, Prompts
from froude.serving.technique import ServingContext
from froude.timing.cost import Collective

Step = Literal["qkv", "decode-attention", "prompt-attention", "output", "reduce-attention", "mlp", "reduce-mlp"]
STEPS: tuple[Step, ...] = (
    "qkv",
    "decode-attention",
    "prompt-attention",
    "output",
    "reduce-attention",
    "mlp",
    "reduce-mlp",
)
MAIN = Lane(0, "compute")

PS = 1e12
TILE = 128  # rows of the output tiles of large products: fewer tokens take as long
KEYS = (0, *(1 << n for n in range(14, 27)))  # that decoding sequences read; the saving is a line between two of them
NEXT_TO_NOTHING = 1e-9
SHALLOW, DEEP = 2, 4  # layers of the programs from which the time of one more layer is taken


@dataclass(frozen=True)
class Content:
    """What is in an iteration, or in a part of it; totals, which may be arrays over candidates.

    Attributes:
        decoding: sequences that generate one token each.
        context: keys that they read.
        prompt_tokens: tokens of prompts.
        prompt_pairs: query-key pairs of those.
        prompt_context: keys read for them.
    """

    decoding: Array
    context: Array
    prompt_tokens: Array = 0.0
    prompt_pairs: Array = 0.0
    prompt_context: Array = 0.0

    @property
    def tokens(self) -> Array:
        """New tokens of both kinds."""
        return self.decoding + self.prompt_tokens

    def split(self, tokens: Array) -> tuple[Content, Content]:
        """The first ``tokens`` tokens, decoding ones before prompts, and the rest."""
        decoding = np.minimum(self.decoding, tokens)
        prompts = np.minimum(self.prompt_tokens, tokens - decoding)
        d = decoding / np.maximum(self.decoding, 1e-12)
        p = prompts / np.maximum(self.prompt_tokens, 1e-12)
        return self._share(d, p), self._share(1.0 - d, 1.0 - p)

    def _share(self, decoding: Array, prompts: Array) -> Content:
        return Content(
            self.decoding * decoding,
            self.context * decoding,
            self.prompt_tokens * prompts,
            self.prompt_pairs * prompts,
            self.prompt_context * prompts,
        )


def layer_work(content: Content, context: ServingContext) -> dict[Step, tuple[Operator | Collective, ...]]:
    """What one layer does for a part of a batch on one device, step by step."""
    tp = context.tensor_parallel
    ways: dict[str, Array] = {
        "heads": tp,
        "kv_heads": min(tp, context.arch.kv_heads),
        "ffn": tp,
        "vocab": tp,
        "expert_ffn": tp,
    }

    def operators(tokens: Array, pairs: Array, keys: Array) -> list[Operator]:
        some = np.maximum(tokens, NEXT_TO_NOTHING)
        found = ragged_layer_operators(context.arch, tokens=some, pairs=pairs, context=keys, dtype=context.dtype)
        return [op.shard(ways) for op in found]

    whole = operators(content.tokens, 0.0, 0.0)
    first = next(i for i, op in enumerate(whole) if isinstance(op, Attention))
    last = next(i for i, op in enumerate(whole) if op.name == "attention-out")
    decode = operators(content.decoding, content.context, content.context)
    prompt = operators(content.prompt_tokens, content.prompt_pairs, content.prompt_context)
    size = content.tokens * context.arch.hidden * 2.0
    reduce = Collective(kind="all-reduce", bytes=size, group=Group(tp), name="tensor parallel")
    return {
        "qkv": tuple(whole[:first]),
        "decode-attention": tuple(op for op in decode if isinstance(op, Attention)),
        "prompt-attention": tuple(op for op in prompt if isinstance(op, Attention)),
        "output": tuple(op for op in whole[first : last + 1] if not isinstance(op, Attention)),
        "reduce-attention": (reduce,),
        "mlp": tuple(whole[last + 1 :]),
        "reduce-mlp": (reduce,),
    }


def iteration_program(parts: Sequence[Content], context: ServingContext, layers: int) -> Program:
    """The layers of an iteration on one lane: in every layer each part takes each step in turn.

    A task's action says which step (kind), layer (chunk) and part (micro_batch) it is.
    """
    program = Program()
    for part, content in enumerate(parts):
        for step, work in layer_work(content, context).items():
            program.costs[f"{step}:{part}"] = context.cost.sequence(work)
    before: dict[int, list[int]] = {}
    for layer in range(layers):
        for part in range(len(parts)):
            after = before.get(part, [])
            done: dict[Step, int] = {}
            for step in STEPS:
                if step == "prompt-attention":
                    after = [done["qkv"]]
                elif step == "output":
                    after = [done["decode-attention"], done["prompt-attention"]]
                done[step] = program.add(MAIN, f"{step}:{part}", Action(step, layer, part), after)
                after = [done[step]]
            before[part] = after
    return program


def layers_s(build: Callable[[int], Program], layers: int) -> Floats:
    """Seconds of all layers, per candidate; ``build`` makes the program of so many.

    Layers repeat themselves, so the time of a deep stack follows from two shallow ones.
    """
    if layers <= DEEP:
        return evaluate(build(layers)).makespan_s
    shallow, deep = (evaluate(build(depth)).makespan_s for depth in (SHALLOW, DEEP))
    each = (deep - shallow) / (DEEP - SHALLOW)
    total: Floats = shallow + (layers - SHALLOW) * each
    return total


Rewrite = Callable[[Content, int], Program]
"""(what is in the iteration, layers) -> the program a technique makes of it."""


class ProgramIterationTime(IterationTime):
    """Another iteration time, less what a technique's program of the layers saves against doing step after step.

    The saving is tabulated over whole tiles of tokens, quarters of prompt tokens among them and keys read, and drawn as
    straight lines between numbers of keys, so that times stay affine within a segment. Everything outside the layers,
    and prompts' prefixes, stay with the other; so do iterations of fewer than ``least_tokens``, left as they are.
    """

    def __init__(self, other: IterationTime, context: ServingContext, rewrite: Rewrite, least_tokens: int = 1) -> None:
        self.other, self.context, self.rewrite, self.least_tokens = other, context, rewrite, least_tokens
        self._saved: dict[tuple[int, int, int], int] = {}

    def segment(self, decoding: int, context: int, prompts: Prompts) -> tuple[int, int, int]:
        """See `IterationTime`."""
        first, slope, valid = self.other.segment(decoding, context, prompts)
        prompt_tokens = sum(count for count, _ in prompts)
        tokens = decoding + prompt_tokens
        if tokens < self.least_tokens:
            return first, slope, valid
        tiles, quarters = -(-tokens // TILE), round(4 * prompt_tokens / tokens)
        at = bisect_right(KEYS, context) - 1
        saved = self._saving(tiles, quarters, at)
        if not decoding:
            return first - saved, slope, valid
        if at + 1 == len(KEYS):
            return first - saved, slope, valid
        per_key = (self._saving(tiles, quarters, at + 1) - saved) // (KEYS[at + 1] - KEYS[at])
        per_key = min(per_key, slope // decoding)  # more keys never make an iteration shorter
        first -= saved + per_key * (context - KEYS[at])
        return first, slope - per_key * decoding, min(valid, -(-(KEYS[at + 1] - context) // decoding))

    def joules(self, busy_s: float, idle_s: float) -> float | None:
        """See `IterationTime`."""
        return self.other.joules(busy_s, idle_s)

    def _saving(self, tiles: int, quarters: int, at: int) -> int:
        """Picoseconds saved with so many keys to read; the next entry is made along with it."""
        if (tiles, quarters, at) not in self._saved:
            tokens, some = float(TILE * tiles), slice(at, at + 2)
            prompt = tokens * quarters / 4
            keys = np.array(KEYS[some], dtype=float)
            content = Content(tokens - prompt, keys, prompt, prompt * (prompt + 1) / 2, prompt)
            saved = np.rint(saving_s(content, self.context, self.rewrite) * PS).astype(np.int64).tolist()
            for offset, value in enumerate(saved):
                self._saved.setdefault((tiles, quarters, at + offset), value)
        return self._saved[tiles, quarters, at]


def saving_s(content: Content, context: ServingContext, rewrite: Rewrite) -> Floats:
    """Seconds that a technique's program of the layers saves against step after step."""
    layers = context.arch.layers
    plain = evaluate(iteration_program([content], context, 1)).makespan_s * layers
    saved: Floats = np.asarray(plain - layers_s(lambda depth: rewrite(content, depth), layers))
    return saved
