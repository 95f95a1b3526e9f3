"""Time transfer: the critical batch grows in proportion to the tokens of the training, whatever the width under muP.

What B_crit / D is at a short horizon it is at a long one; Zhang's law (`critical-batch`) says the square root.
"""

from __future__ import annotations

from typing import Any

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class TimeTransfer(Law):
    """B_crit = k D."""

    name = "time-transfer"
    source = Source(
        "Filatov et al.",
        2024,
        "Time Transfer: On Optimal Learning Rate and Batch Size In The Infinite Data Limit",
        "arXiv:2410.05838",
        catalogue=172,
    )
    form = "B_crit = k D"
    inputs = ("tokens",)
    target = "batch_tokens"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """One coefficient."""
        return (Symbol("k", "1", 1e-8, 1e-1, "log", "critical batch as a share of the tokens"),)

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Critical batch in tokens."""
        return coefficients["k"] * inputs["tokens"]
