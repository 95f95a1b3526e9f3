"""Loss under any learning-rate schedule: a power of the area under the rate, less the area of its annealing.

Steps at a high rate learn, lowering the rate harvests: S_2 sums the drops so far, each forgotten slowly. One or two
runs fit it, and `froude.laws.schedules` turns schedules into the two areas.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Annealing(Law):
    """L = L_0 + A S_1^-alpha - C S_2."""

    name = "annealing"
    source = Source("Tissue et al.", 2024, "Scaling Law with Learning Rate Annealing", "arXiv:2408.11029")
    form = "L = L_0 + A S_1^-alpha - C S_2; S_1 area under the rate, S_2 area of its annealing"
    inputs = ("rate_area", "annealing_area")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("L_0", "nats", 0.3, 4.0, "log", "irreducible loss"),
            Symbol("A", "nats", 1e-3, 1e2, "log", "size of the power of the area"),
            Symbol("alpha", "1", 0.1, 1.5, "log", "exponent of the area"),
            Symbol("C", "nats", 1e-3, 1e2, "log", "gain from a unit of annealing"),
        )

    def positive(self) -> tuple[str, ...]:
        """A constant rate has no annealing."""
        return ("rate_area",)

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Validation loss in nats per token."""
        c = coefficients
        learned = c["A"] * np.exp(-c["alpha"] * np.log(inputs["rate_area"]))
        return c["L_0"] + learned - c["C"] * inputs["annealing_area"]
