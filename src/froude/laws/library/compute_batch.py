"""Shuai's batch at a budget: of ever larger compute a little goes to larger batches and most to more steps.

The best batch for a fixed budget and for fixed data differ: without regard to compute the smallest batch wins longer.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library._power import Power

# Exponents of compute along the frontier. Steps and batch share the exponent of tokens between them.
SIZE_EXPONENT, TOKEN_EXPONENT = 0.464, 0.536
STEP_EXPONENT, BATCH_EXPONENT = 0.434, 0.102
RATE_EXPONENTS = (0.75, 1.0)  # of the batch, in the learning rate: between Adam's and SGD's rule


class ComputeBatch(Power):
    """B = k C^a, in tokens."""

    name = "compute-batch"
    source = Source(
        "Shuai et al.",
        2024,
        "Scaling Law for Language Models Training Considering Batch Size",
        "arXiv:2412.01505",
        catalogue=91,
    )
    form = "B = k C^a"
    inputs = ("flops",)
    target = "batch_tokens"
    unit = "tokens"
    scale = (1e-2, 1e6)
    exponent = (0.0, 0.6)
