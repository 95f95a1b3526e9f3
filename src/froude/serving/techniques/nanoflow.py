"""NanoFlow: two nano-batches run at once on one device, so that one's products overlap the other's attention and
all-reduces.

The batch is cut in two; products run on one lane, decode attention on another, collectives on a third, and the
nano-batches take turns half a layer apart. Weights are read once per nano-batch; smaller products are less efficient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from froude.core.arrays import Array
from froude.core.registry import Source
from froude.program.program import Lane, Program
from froude.serving.iteration import IterationTime
from froude.serving.iteration_program import (
    MAIN,
    TILE,
    Content,
    ProgramIterationTime,
    Step,
    iteration_program,
)
from froude.serving.technique import ServingContext, ServingTechnique
from froude.timing.cost import Cost

Share = Annotated[float, Field(gt=0, le=1)]

# One layer's turns on the compute lane; the first nano-batch starts its next layer while the second ends this one.
TURNS: tuple[tuple[int, int, Step], ...] = (
    (0, 0, "output"),
    (1, 0, "qkv"),
    (1, 0, "prompt-attention"),
    (0, 0, "mlp"),
    (1, 0, "output"),
    (0, 1, "qkv"),
    (0, 1, "prompt-attention"),
    (1, 0, "mlp"),
)
"""(nano-batch, layers ahead, step)"""


@dataclass(frozen=True)
class NanoFlow(ServingTechnique):
    """Knobs.

    ``first`` is the share of tokens in the first nano-batch, decoding ones before prompts: the authors run LLaMA-2-70B
    with 640 of 2,048 (github.com/efeslab/Nanoflow, config_all/llama2-70B/2048.json), whole tiles; 0 leaves it whole.
    ``overlap_network`` and ``overlap_memory`` give collectives and decode attention lanes of their own. Beside products
    decode attention is confined to ``attention_share`` of the multiprocessors, where it reaches ``attention_speed`` of
    its bandwidth (section 4's interference table, from memory: 0.4 gives 0.8). Iterations of fewer than
    ``least_tokens``, the smallest the authors have a pipeline for (pipeline/config/512.json), are left whole.
    """

    name = "nanoflow"
    source = Source(
        "Zhu et al.",
        2024,
        "NanoFlow: Towards Optimal Large Language Model Serving Throughput",
        "arXiv:2408.12757",
        catalogue=53,
    )
    quality = "exact: the same operations in another order"

    first: Annotated[float, Field(ge=0, lt=1)] = 0.3125
    overlap_network: bool = True
    overlap_memory: bool = True
    attention_share: Share = 0.4
    attention_speed: Share = 0.8
    least_tokens: Annotated[int, Field(ge=1)] = 512

    def rewrite_time(self, time: IterationTime, context: ServingContext) -> IterationTime:
        """Less what overlap saves."""
        if not self.first:
            return time

        def rewrite(content: Content, layers: int) -> Program:
            return self.program(content, context, layers)

        return ProgramIterationTime(time, context, rewrite, self.least_tokens)

    def program(self, content: Content, context: ServingContext, layers: int) -> Program:
        """The layers of an iteration under this technique."""
        if not self.first:
            return iteration_program([content], context, layers)
        whole_tiles = np.rint(self.first * content.tokens / TILE) * TILE
        program = iteration_program(content.split(whole_tiles), context, layers)
        if self.overlap_network or self.overlap_memory:
            program.rearrange(self._lanes(program, layers))
        if self.overlap_memory:
            for part in (0, 1):
                key = f"decode-attention:{part}"
                program.costs[key] = self._confined(program.costs[key])
        return program

    def _lanes(self, program: Program, layers: int) -> dict[Lane, list[int]]:
        by_place = {(t.action.micro_batch, t.action.chunk, t.action.kind): i for i, t in enumerate(program.tasks)}
        turns: list[tuple[int, int, str]] = [(0, 0, "qkv"), (0, 0, "prompt-attention")]
        for layer in range(layers):
            turns += [(part, layer + ahead, step) for part, ahead, step in TURNS if layer + ahead < layers]
        main = [by_place[turn] for turn in turns]
        # On the other lanes steps come in the order in which the compute lane's turns lead to them.
        memory, network = [], []
        for part, layer, step in turns:
            if step == "qkv":
                memory.append(by_place[part, layer, "decode-attention"])
            elif step in ("output", "mlp"):
                reduce = "reduce-attention" if step == "output" else "reduce-mlp"
                network.append(by_place[part, layer, reduce])
        lanes = {MAIN: main}
        for name, order, alone in (
            ("memory", memory, self.overlap_memory),
            ("network", network, self.overlap_network),
        ):
            if alone:
                lanes[Lane(MAIN.device, name)] = order
            else:
                lanes[MAIN] = _merged(lanes[MAIN], order, program)
        return lanes

    def _confined(self, cost: Cost) -> Cost:
        """On a share of the multiprocessors: slower alone, and that share is what it takes from others."""
        slower: Array = cost.seconds / self.attention_speed
        memory = cost.demands.get("memory", 0.0) * self.attention_speed
        return replace(cost, seconds=slower, demands={"compute": self.attention_share, "memory": memory})


def _merged(main: list[int], others: list[int], program: Program) -> list[int]:
    """Each of ``others`` right before the first task of ``main`` that waits for it, directly or not."""
    follower = {before: i for i, task in enumerate(program.tasks) for before in task.after}
    merged = list(main)
    for task in others:
        following = follower.get(task)
        while following is not None and following not in merged:
            following = follower.get(following)
        merged.insert(len(merged) if following is None else merged.index(following), task)
    return merged
