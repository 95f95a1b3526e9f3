"""1F1B (PipeDream-Flush): after a short warm-up each stage alternates one forward and one backward pass.

A stage then never keeps more activations than there are stages after it, itself included.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.training.schedule import Pass, Schedule


class OneForwardOneBackward(Schedule):
    """One forward, one backward."""

    name = "one-forward-one-backward"
    source = Source(
        "Narayanan et al.",
        2021,
        "Memory-Efficient Pipeline-Parallel DNN Training (PipeDream-Flush)",
        "arXiv:2006.09503",
    )

    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """Stage ``s`` runs ``stages - s - 1`` forward passes before it starts to alternate."""
        return [_one_stage(min(stages - stage - 1, micro_batches), micro_batches) for stage in range(stages)]


def _one_stage(warm_up: int, micro_batches: int) -> list[Pass]:
    order = [Pass("forward", m) for m in range(warm_up)]
    for m in range(warm_up, micro_batches):
        order += [Pass("forward", m), Pass("backward", m - warm_up)]
    return order + [Pass("backward", m) for m in range(micro_batches - warm_up, micro_batches)]
