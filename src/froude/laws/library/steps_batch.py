"""Steps to a target loss against batch: perfect scaling below the critical batch, none far above it.

McCandlish's hyperbola; one fit per model and target loss. `froude.laws.gradient_noise` measures the same critical batch
from gradients.
"""

from __future__ import annotations

from typing import Any

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class StepsBatch(Law):
    """S = S_min (1 + B_crit / B)."""

    name = "steps-batch"
    source = Source(
        "McCandlish et al.", 2018, "An Empirical Model of Large-Batch Training", "arXiv:1812.06162", catalogue=85
    )
    form = "S = S_min (1 + B_crit / B)"
    inputs = ("batch",)
    target = "steps"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("S_min", "steps", 10.0, 1e6, "log", "steps at an infinite batch"),
            Symbol("B_crit", "batch", 10.0, 1e6, "log", "batch at which both steps and examples are twice the least"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Steps to the target loss."""
        return coefficients["S_min"] * (1.0 + coefficients["B_crit"] / inputs["batch"])
