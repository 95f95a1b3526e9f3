"""Theory: outer-product memories of d dimensions, with Zipf-distributed associations learned from T examples.

Associations never seen and associations crowded out add up: the error falls as a power of data and of dimension, each
set by the tail of the frequencies.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class AssociativeMemory(Law):
    """error = a d^(1 - alpha) + b T^(1/alpha - 1)."""

    name = "associative-memory"
    source = Source("Cabannes et al.", 2023, "Scaling Laws for Associative Memories", "arXiv:2310.02984", catalogue=305)
    form = "error = a d^(1 - alpha) + b T^(1/alpha - 1); the best storage scheme"
    inputs = ("dimension", "examples")
    target = "error"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("a", "1", 0.01, 100.0, "log", "size of the capacity term"),
            Symbol("b", "1", 0.01, 100.0, "log", "size of the data term"),
            Symbol("alpha", "1", 1.05, 4.0, "bounded", "frequency of association k falls as k^-alpha"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Chance of a wrong recall."""
        c = coefficients
        capacity = c["a"] * np.exp((1.0 - c["alpha"]) * np.log(inputs["dimension"]))
        return capacity + c["b"] * np.exp((1.0 / c["alpha"] - 1.0) * np.log(inputs["examples"]))
