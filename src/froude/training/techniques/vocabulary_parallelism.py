"""Vocabulary parallelism: every pipeline stage holds an equal share of the embedding and of the output layer.

A micro-batch's last hidden states are broadcast to all stages; each makes the logits of its share (pass S) and, once
the stages have agreed on the softmax, the gradients of its share (pass T), as two more passes woven into 1F1B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from froude.core.arrays import Array
from froude.core.registry import Source
from froude.machines.cluster import Cluster
from froude.models.architecture import Architecture
from froude.models.operator import Elementwise, Gather, Operator
from froude.models.transformer import head_activation_tensors, head_operators
from froude.program.program import Action, Lane, MemoryDelta, Program
from froude.timing.cost import Collective, Cost
from froude.training.blocks import tied_copy
from froude.training.build import Structure
from froude.training.plan import Job, Layout
from froude.training.price import Priced, price_pass
from froude.training.schedule import Pass, Schedule, schedules
from froude.training.schedules.one_forward_one_backward import OneForwardOneBackward
from froude.training.technique import StepContext, TrainingTechnique
from froude.training.work import Blocks, Work, activation_bytes, stream_bytes, stream_dtype

OUTPUT_LAYER = ("lm-head", "cross-entropy", "tp-loss")
"""Work of the head that is divided over the stages; the final norm stays on the last one."""


@dataclass(frozen=True)
class VocabularyParallelism(TrainingTechnique):
    """Knob: communication barriers between the last layer's forward and backward pass.

    With 2 (the paper's Algorithm 1) stages first agree on the softmax and then add up the gradient of the hidden
    states. With 1 (Algorithm 2) pass S already makes that gradient from the local softmax, to be rescaled as it is
    added up: pass T, left with the gradient of the weights, holds up nobody. Every barrier lasts one more micro-batch.
    """

    name = "vocabulary-parallelism"
    source = Source(
        "Yeung, Qi, Lin and Wan",
        2024,
        "Balancing Pipeline Parallelism with Vocabulary Parallelism",
        "arXiv:2411.05288",
        catalogue=338,
    )
    quality = "exact: the same loss and gradients, summed in another order"

    barriers: Literal[1, 2] = 2

    def objection(self, architecture: Architecture, cluster: Cluster, job: Job, layout: Layout) -> str | None:
        """It balances the stages of a 1F1B pipeline whose layers are balanced already."""
        stages = layout.pipeline_parallel
        if stages < 2:
            return f"needs pipeline_parallel of 2 or more, and the layout has pipeline_parallel {stages}"
        if schedules.get(layout.schedule) is not OneForwardOneBackward:
            return f"needs schedule 1f1b, and the layout has schedule {layout.schedule}"
        if architecture.layers % stages:
            return f"needs equal stages, and pipeline_parallel {stages} does not divide {architecture.layers} layers"
        return None

    def rewrite_blocks(self, blocks: Blocks, context: StepContext) -> Blocks:
        """Leave the end stages what is not divided.

        Stages have equally many layers, so a stage's share of the parameters may ride on its layers: what is kept,
        reduced and updated per parameter then falls on all stages alike.
        """
        layers = context.architecture.layers
        embedding, layer, head = blocks["embedding"], blocks["layer"], blocks["head"]
        kept = _head_tensors(context, context.placement.ways)["final-norm-input"]
        # Each stage holds the same rows of embedding and head, so a tied one needs no second copy.
        copy = tied_copy(context.architecture, context.batch) / context.placement.mesh["tp"]
        shared = embedding.parameters + head.parameters - copy
        return {
            **blocks,
            "embedding": replace(
                embedding, forward=_rest(embedding.forward), backward=_rest(embedding.backward), parameters=0.0
            ),
            "layer": replace(layer, parameters=layer.parameters + shared / layers),
            "head": replace(
                head,
                forward=_rest(head.forward),
                backward=_rest(head.backward),
                parameters=0.0,
                saved_bytes=kept,
                transient_bytes=0.0,
            ),
        }

    def rewrite_schedule(self, schedule: Schedule) -> Schedule:
        """Each barrier keeps one more micro-batch in flight."""
        return _LongerWarmUp(schedule, self.barriers)

    def rewrite_program(self, program: Program, structure: Structure, priced: Priced, context: StepContext) -> Program:
        """Weave in the passes of the shares and the communication between them."""
        program.costs |= self._costs(context)
        program.sizes |= self._sizes(context)
        weaver = _Weaver(program, structure, self.barriers)
        for micro_batch in range(structure.micro_batches):
            weaver.weave(micro_batch)
        weaver.put_in_order()
        return program

    def _costs(self, context: StepContext) -> dict[str, Cost]:
        """Seconds of the new tasks."""
        arch, batch, model = context.architecture, context.batch, context.model
        stages = batch.pipeline_parallel
        dtype, ways = stream_dtype(context.job), _ways(context)
        tokens = batch.micro_batch * context.job.seq_len / batch.context_parallel
        every_stage = context.placement.group("pp")
        stream = stream_bytes(arch, context.job, batch)

        output = [
            op.shard(ways)
            for op in head_operators(arch, tokens=batch.micro_batch * context.job.seq_len, dtype=dtype)
            if op.name in OUTPUT_LAYER
        ]
        # Each stage finds about its share of the tokens in its rows and leaves zeros for the others.
        look_up = Gather(name="embedding", dtype=dtype, rows=tokens / stages, width=arch.hidden)
        zeros = _stream_kernel("embedding-zeros", tokens, arch.hidden, dtype, reads=0.0)
        pass_s, pass_t = output, [part for op in reversed(output) for part in op.backward()]
        rescale: tuple[Operator, ...] = ()
        if self.barriers == 1:
            # The gradient of the hidden states moves ahead; the target's row of the weights is subtracted apart.
            early = [op for op in pass_t if op.name == "lm-head-dgrad"]
            pass_t = [op for op in pass_t if op.name != "lm-head-dgrad"]
            pass_s = [*pass_s, *early, replace(look_up, name="target-rows"), replace(zeros, name="target-zeros")]
            rescale = (_stream_kernel("rescale", tokens, arch.hidden, dtype, reads=2.0),)

        # A maximum, a sum and the target's logit per token, in fp32.
        statistics = [
            Collective(kind="all-reduce", bytes=tokens * 3 * 4.0, group=group, name="softmax-statistics")
            for group in (context.placement.group("tp"), every_stage)
        ]

        # A reduction to one rank sends what a broadcast from it does, the other way.
        spread = Collective(kind="broadcast", bytes=stream, group=every_stage, name="vocabulary-stream")
        agree = statistics if self.barriers == 2 else [*statistics, replace(spread, overhead=rescale)]
        return {
            "embedding-forward": price_pass([look_up, zeros], model)[0],
            "reduce-embedding": model.collective(spread),
            "broadcast-hidden": model.collective(spread),
            "vocabulary-s": price_pass(pass_s, model)[0],
            "agree-on-softmax": model.sequence(agree),
            "vocabulary-t": price_pass(pass_t, model)[0],
            "reduce-gradient": model.collective(spread),
            "broadcast-gradient": model.collective(spread),
            "embedding-backward": price_pass(look_up.backward(), model)[0],
        }

    def _sizes(self, context: StepContext) -> dict[str, Array]:
        """Bytes that the new passes hold."""
        stream = stream_bytes(context.architecture, context.job, context.batch)
        logits = _head_tensors(context, _ways(context))["logits"]
        # The hidden states, and with one barrier the early gradient in its two parts.
        kept = stream if self.barriers == 2 else 3.0 * stream
        return {
            "vocabulary-saved": logits + kept,
            # the logits in the compute type that the fp32 copy was made from, and their gradient
            "vocabulary-transient": logits * activation_bytes(context.job) / 4.0,
            "vocabulary-stream": stream,
        }


@dataclass(frozen=True)
class _LongerWarmUp(Schedule):
    """The order of a pipeline that had ``barriers`` more stages behind its last."""

    base: Schedule
    barriers: int

    name = "vocabulary-parallel-1f1b"
    source = VocabularyParallelism.source

    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """Its passes on the stages there are."""
        return self.base.order(stages + self.barriers, micro_batches, chunks)[:stages]


class _Ends(NamedTuple):
    """First and last part of one micro-batch's pass on one stage."""

    first: int
    last: int


class _Weaver:
    """Adds passes and communication, then puts every lane in order.

    The order is that of the paper's building block: one micro-batch's passes laid out in time, and repeated at an even
    interval (Qi et al. 2024, Pipeline Parallelism with Controllable Memory, arXiv:2405.15362). A forward pass counts
    one slot, a backward pass two, a barrier one interval of three. Everything waits for earlier slots only, so no
    order found that way can deadlock.
    """

    def __init__(self, program: Program, structure: Structure, barriers: int) -> None:
        self.program, self.barriers = program, barriers
        self.stages, self.last = structure.stages, structure.stages - 1
        self.ends = {stage: self._find_ends(stage) for stage in (0, self.last)}
        out = float(structure.stages)  # when the first micro-batch has come through the last layer
        back = out + 3.0 * barriers  # when its gradient enters that layer
        done = back + 2.0 * structure.stages  # when it has come through the first
        self.slots = {
            "embedding-forward": -2.5,
            "reduce-embedding": -2.0,
            "broadcast-hidden": out,
            "vocabulary-s": out + 0.5,
            "agree-on-softmax": out + 1.0,
            "vocabulary-t": out + 3.5,
            "reduce-gradient": out + 4.0,
            "backward": back,
            "broadcast-gradient": done + 0.5,
            "embedding-backward": done + 1.0,
        }

    def weave(self, micro_batch: int) -> None:
        """Add all that one micro-batch needs."""
        tasks = self.program.tasks
        transient = MemoryDelta("vocabulary-transient", at_start=1, at_end=-1)
        stream = MemoryDelta("vocabulary-stream", at_start=1, at_end=-1)
        take, give_back = MemoryDelta("vocabulary-saved", at_start=1), MemoryDelta("vocabulary-saved", at_end=-1)
        first, last = self.ends[0], self.ends[self.last]

        looked_up = self._everywhere("compute", "embedding-forward", micro_batch, (), (stream,))
        embedded = self._communicate("reduce-embedding", micro_batch, looked_up)
        tasks[first["forward"][micro_batch].first].after.append(embedded[0])

        hidden = self._communicate("broadcast-hidden", micro_batch, [last["forward"][micro_batch].last])
        pass_s = self._everywhere("compute", "vocabulary-s", micro_batch, hidden, (take, transient))
        agreed = self._communicate("agree-on-softmax", micro_batch, pass_s)
        pass_t = self._everywhere("compute", "vocabulary-t", micro_batch, agreed, (give_back, transient))
        if self.barriers == 2:
            agreed = self._communicate("reduce-gradient", micro_batch, pass_t)
        tasks[last["backward"][micro_batch].first].after.append(agreed[self.last])

        arrived = self._communicate("broadcast-gradient", micro_batch, [first["backward"][micro_batch].last])
        self._everywhere("compute", "embedding-backward", micro_batch, arrived, (stream,))

    def put_in_order(self) -> None:
        """Sort the lanes with new tasks by slot; what ends the step stays at the end."""
        for lane, order in self.program.lanes.items():
            if lane.stream in ("compute", "vocabulary"):
                order.sort(key=self._slot)

    def _everywhere(
        self, stream: str, kind: str, micro_batch: int, after: Sequence[int], memory: tuple[MemoryDelta, ...] = ()
    ) -> list[int]:
        """One task per stage; each waits for its own stage's task of ``after``."""
        return [
            self.program.add(Lane(stage, stream), kind, Action(kind, 0, micro_batch), after[stage : stage + 1], memory)
            for stage in range(self.stages)
        ]

    def _communicate(self, kind: str, micro_batch: int, after: Sequence[int]) -> list[int]:
        """A collective over all stages, which starts when all of ``after`` have ended."""
        found = self._everywhere("vocabulary", kind, micro_batch, ())
        for task in found:
            self.program.tasks[task].after += after
        return found

    def _slot(self, task_id: int) -> float:
        """When a task runs in the repeated building block; a hand-over stays behind its pass."""
        task = self.program.tasks[task_id]
        action, start = task.action, 3.0 * task.action.micro_batch
        if action.kind in ("forward", "send-activation"):
            return start + task.lane.device
        if action.kind in ("backward", "send-gradient"):
            return start + self.slots["backward"] + 2.0 * (self.last - task.lane.device)
        return start + self.slots[action.kind] if action.kind in self.slots else math.inf

    def _find_ends(self, stage: int) -> dict[str, dict[int, _Ends]]:
        """Of each pass of a stage, by direction and micro-batch: its first and its last part."""
        ends: dict[str, dict[int, _Ends]] = {"forward": {}, "backward": {}}
        for kind, known in ends.items():
            for task in self.program.find(kind, stage):
                micro_batch = self.program.tasks[task].action.micro_batch
                known[micro_batch] = _Ends(known[micro_batch].first if micro_batch in known else task, task)
        return ends


def _rest(work: Work) -> Work:
    """What the end stages keep: all but the look-up in the embedding and the output layer."""
    return tuple(item for item in work if not isinstance(item, Gather) and not item.name.startswith(OUTPUT_LAYER))


def _ways(context: StepContext) -> dict[str, Array]:
    """Pieces per logical axis of the output layer: the vocabulary over stages and tensor-parallel ranks."""
    batch = context.batch
    return {"vocab": batch.tensor_parallel * batch.pipeline_parallel, "sequence": batch.context_parallel}


def _head_tensors(context: StepContext, ways: Mapping[str, Array]) -> dict[str, Array]:
    """Bytes on one rank of what the head keeps for its backward pass."""
    job = context.job
    tensors = head_activation_tensors(
        context.architecture, batch=context.batch.micro_batch, queries=job.seq_len, dtype=stream_dtype(job)
    )
    return {tensor.name: tensor.shard(ways) for tensor in tensors}


def _stream_kernel(name: str, tokens: Array, width: int, dtype: str, *, reads: float) -> Elementwise:
    """One kernel of its own that writes as much as the hidden states."""
    return Elementwise(name=name, dtype=dtype, rows=tokens, width=width, reads=reads, fusable=False)
