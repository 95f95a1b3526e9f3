"""Porian's compute-optimal size: N* = c C^a, fitted to the minima of isoFLOP curves.

Counting the last layer, shortening the warm-up and tuning per size move a from Kaplan's 0.84 to Chinchilla's 0.50; the
published sets are that chain. Fitted by least squares on log N, each point weighted by the uncertainty of its minimum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class Porian(Law):
    """N* = c C^a."""

    name = "porian"
    source = Source(
        "Porian et al.",
        2024,
        "Resolving Discrepancies in Compute-Optimal Scaling of Language Models",
        "arXiv:2406.19146",
        catalogue=131,
    )
    form = "N* = c C^a"
    inputs = ("flops",)
    target = "params"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("c", "parameters", 1e-10, 1e3, "log", "size at one FLOP"),
            Symbol("a", "1", 0.2, 1.0, "log", "exponent of compute"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Compute-optimal parameters."""
        return np.exp(np.log(coefficients["c"]) + coefficients["a"] * np.log(inputs["flops"]))

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """C = 6 N D."""
        params = self.predict({"flops": flops}, coefficients)
        return {"params": params, "tokens": flops / 6.0 / params}
