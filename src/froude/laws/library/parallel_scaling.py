"""ParScale: P parallel streams through one set of weights act like O(log P) times more parameters.

Memory hardly grows and decoding stays bound by weights, so that streams are cheap at small batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class ParallelScaling(Law):
    """L = E + (A / (N (k ln P + 1)))^alpha."""

    name = "parallel-scaling"
    source = Source(
        "Chen et al.",
        2025,
        "Parallel Scaling Law for Language Models",
        "arXiv:2505.10475",
        catalogue=458,
    )
    form = "L = E + (A / (N (k ln P + 1)))^alpha"
    inputs = ("params", "streams")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("E", "nats", 0.3, 2.5, "log", "irreducible loss"),
            Symbol("A", "parameters", 1e5, 1e10, "log", "parameters where the reducible loss is one"),
            Symbol("k", "1", 0.02, 3.0, "log", "worth of a stream"),
            Symbol("alpha", "1", 0.05, 0.6, "log", "exponent of parameters"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token, at fixed data."""
        c = coefficients
        worth = inputs["params"] * (c["k"] * np.log(inputs["streams"]) + 1.0)
        return c["E"] + np.exp(c["alpha"] * (np.log(c["A"]) - np.log(worth)))
