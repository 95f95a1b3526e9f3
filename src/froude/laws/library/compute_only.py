"""The compute-only law: loss follows total training compute, however it is split between parameters and tokens.

A baseline: what it misses against two-variable laws is the worth of a good split.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class ComputeOnly(Law):
    """L = E + a C^-b."""

    name = "compute-only"
    source = Source("Guo", 2024, "More Compute Is What You Need", "arXiv:2404.19484", catalogue=290)
    form = "L = E + a C^-b"
    inputs = ("flops",)

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("E", "nats", 0.05, 3.0, "log", "irreducible loss"),
            Symbol("a", "nats", 1.0, 1e8, "log", "size of the term at one FLOP"),
            Symbol("b", "1", 0.02, 0.5, "log", "exponent of compute"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        return c["E"] + c["a"] * np.exp(-c["b"] * np.log(inputs["flops"]))
