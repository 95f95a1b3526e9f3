"""Dettmers' bit-level scaling: at equal bits in all, more parameters of fewer bits each win down to about four.

The paper draws curves of zero-shot accuracy against total bits, straight in the logarithm and parallel between
precisions; the offset of a precision is put here as the error power of its rounding, which falls fourfold per bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class BitLevel(Law):
    """accuracy = a + b log2 N - c 4^-bits."""

    name = "bit-level"
    source = Source(
        "Dettmers and Zettlemoyer",
        2023,
        "The case for 4-bit precision: k-bit Inference Scaling Laws",
        "arXiv:2212.09720",
        catalogue=264,
    )
    form = "accuracy = a + b log2 N - c 4^-P; straight and parallel in the log of total bits N P"
    inputs = ("params", "weight_bits")
    target = "accuracy"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("a", "1", -1.0, 0.5, "linear", "accuracy of one parameter, extrapolated"),
            Symbol("b", "1", 0.001, 0.1, "log", "gain from twice the parameters"),
            Symbol("c", "1", 0.01, 20.0, "log", "loss by rounding, at zero bits"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Mean zero-shot accuracy, 0 to 1."""
        c = coefficients
        return c["a"] + c["b"] * np.log2(inputs["params"]) - c["c"] * 4.0 ** -np.asarray(inputs["weight_bits"])


def best_bits(coefficients: Values, bits: Floats) -> float:
    """The precision of highest accuracy at any number of total bits."""
    accuracy = BitLevel().predict({"params": 1e12 / bits, "weight_bits": bits}, coefficients)
    return float(bits[int(np.argmax(accuracy))])
