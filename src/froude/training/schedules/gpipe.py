"""GPipe: all micro-batches forward, then all backward.

The simplest order; every stage keeps the activations of all micro-batches until the backward passes begin.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.training.schedule import Pass, Schedule


class GPipe(Schedule):
    """All forward passes first."""

    name = "gpipe"
    source = Source(
        "Huang et al.",
        2019,
        "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism",
        "arXiv:1811.06965",
        catalogue=335,
    )

    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """The same order on every stage."""
        forward = [Pass("forward", m) for m in range(micro_batches)]
        backward = [Pass("backward", m) for m in reversed(range(micro_batches))]
        return [forward + backward for _ in range(stages)]
