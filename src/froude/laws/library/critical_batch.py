"""Zhang's critical batch: the largest batch within 20% of linear scaling grows as a power of the data, hardly of size.

Training each size to 20 tokens per parameter gives the exponent 0.47 in N; holding one of N and D fixed shows that it
is D that drives it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

OVERHEAD = 0.2  # the paper's definition: 20% more steps than linear scaling from the reference batch
REFERENCE_BATCH = 256.0  # sequences, from where linear scaling is counted


class CriticalBatch(Law):
    """B* = k D^a, in tokens."""

    name = "critical-batch"
    source = Source(
        "Zhang et al.",
        2024,
        "How Does Critical Batch Size Scale in Pre-training?",
        "arXiv:2410.21676",
        catalogue=34,
    )
    form = "B* = k D^a"
    inputs = ("tokens",)
    target = "batch_tokens"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("k", "tokens", 1e-3, 1e6, "log", "critical batch of one token of data"),
            Symbol("a", "1", 0.1, 1.0, "log", "exponent of tokens"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Critical batch in tokens."""
        return np.exp(np.log(coefficients["k"]) + coefficients["a"] * np.log(inputs["tokens"]))


def batch_at_overhead(
    floor: float, slope: float, reference: float = REFERENCE_BATCH, overhead: float = OVERHEAD
) -> float:
    """The batch B where steps = floor + slope / B exceed linear scaling from ``reference`` by ``overhead``.

    Linear scaling from B_0 promises (floor + slope / B_0) B_0 / B steps.
    """
    linear = (floor * reference + slope) * (1.0 + overhead)
    return (linear - slope) / floor
