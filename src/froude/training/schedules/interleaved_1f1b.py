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
        """Groups of ``stages`` micro-batches go through a chunk together."""
        if chunks < 2:
            return f"{self.name} needs at least 2 chunks per stage"
        if stages < 2:
            return f"{self.name} needs at least 2 stages"
        if micro_batches % stages:
            return f"{self.name} needs micro-batches ({micro_batches}) in multiples of stages ({stages})"
        return None

    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """Stage ``s`` warms up for ``2 (stages - s - 1) + (chunks - 1) stages`` forward passes, then alternates.

        Megatron-LM of 2021 ran all forward passes first where micro-batches equal stages. The bubble is the same,
        exposed sends differ by some 1% of a step, and all activations are held at once; Megatron-Core does not.
        """
        total = micro_batches * chunks
        forward = [Pass("forward", *_turn(k, stages, chunks)) for k in range(total)]
        backward = []
        for k in range(total):
            micro_batch, chunk = _turn(k, stages, chunks)
            backward.append(Pass("backward", micro_batch, chunks - 1 - chunk))
        orders = []
        for stage in range(stages):
            warm_up = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)
            order = forward[:warm_up]
            for k in range(warm_up, total):
                order += [forward[k], backward[k - warm_up]]
            orders.append(order + backward[total - warm_up :])
        return orders


def _turn(k: int, stages: int, chunks: int) -> tuple[int, int]:
    """Micro-batch and chunk of the ``k``-th forward pass: ``stages`` micro-batches per chunk, chunk after chunk."""
    group, within = divmod(k, stages * chunks)
    chunk, micro_batch = divmod(within, stages)
    return group * stages + micro_batch, chunk
