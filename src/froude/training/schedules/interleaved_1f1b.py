"""Interleaved 1F1B (PTD-P): each stage holds several chunks of layers and runs 1F1B over them in turn.

The pipeline fills in passes of a chunk instead of a stage, so less time is lost; activations cross stages more often.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.training.schedule import Pass, Schedule


class Interleaved1F1B(Schedule):
    """1F1B over several chunks of layers per stage."""

    name = "interleaved-1f1b"
    source = Source(
        "Narayanan et al.",
        2021,
        "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
        "arXiv:2104.04473",
        catalogue=337,
    )

    def objection(self, stages: int, micro_batches: int, chunks: int) -> str | None:
        """A group of micro-batches that go through a chunk together is no smaller than the pipeline is long."""
        if chunks < 2:
            return f"{self.name} needs at least 2 chunks per stage"
        if stages < 2:
            return f"{self.name} needs at least 2 stages"
        if micro_batches < stages:
            return f"{self.name} needs micro-batches ({micro_batches}) as many as stages ({stages}) or more"
        return None

    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """Stage ``s`` warms up for ``2 (stages - s - 1) + (chunks - 1) group`` forward passes, then alternates.

        Megatron-LM of 2021 ran all forward passes first where micro-batches equal stages. The bubble is the same,
        exposed sends differ by some 1% of a step, and all activations are held at once; Megatron-Core does not.
        """
        total = micro_batches * chunks
        group = group_size(stages, micro_batches)
        turns = [
            (micro_batch, chunk)
            for first in range(0, micro_batches, group)
            for chunk in range(chunks)
            for micro_batch in range(first, min(first + group, micro_batches))
        ]
        forward = [Pass("forward", micro_batch, chunk) for micro_batch, chunk in turns]
        backward = [Pass("backward", micro_batch, chunks - 1 - chunk) for micro_batch, chunk in turns]
        orders = []
        for stage in range(stages):
            warm_up = min(2 * (stages - stage - 1) + (chunks - 1) * group, total)
            order = forward[:warm_up]
            for k in range(warm_up, total):
                order += [forward[k], backward[k - warm_up]]
            orders.append(order + backward[total - warm_up :])
        return orders


def group_size(stages: int, micro_batches: int) -> int:
    """Micro-batches that go through a chunk together: as many as stages, or the fewest that leave no short last group.

    Megatron-Core's ``--microbatch-group-size-per-virtual-pipeline-stage``: a last group may be smaller than the others,
    but not smaller than the pipeline is long.
    """
    return next(n for n in range(stages, micro_batches + 1) if not 0 < micro_batches % n < stages)
