"""Large Language Monkeys: the share of problems solved by some of k samples is an exponentiated power law in k.

Holds where answers can be verified; picking the right sample without a verifier saturates far earlier.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class Coverage(Law):
    """coverage = exp(-a k^-b)."""

    name = "coverage"
    source = Source(
        "Brown et al.",
        2024,
        "Large Language Monkeys: Scaling Inference Compute with Repeated Sampling",
        "arXiv:2407.21787",
        catalogue=432,
    )
    form = "coverage = exp(-a k^-b)"
    inputs = ("samples",)
    target = "coverage"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("a", "1", 0.05, 10.0, "log", "minus the log of coverage at one sample"),
            Symbol("b", "1", 0.02, 2.0, "log", "exponent of samples"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Share of problems solved, 0 to 1."""
        c = coefficients
        return np.exp(-c["a"] * np.exp(-c["b"] * np.log(inputs["samples"])))
