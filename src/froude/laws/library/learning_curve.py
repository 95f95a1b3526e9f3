"""Theory: Hutter's learning curve, the chance that the next of Zipf-distributed features was never seen before.

With feature k of probability proportional to k^-(1 + alpha), the error of memorising n examples falls as
n^(-alpha / (1 + alpha)): never faster than 1 / n, and for heavy tails as slowly as one likes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class LearningCurve(Law):
    """error = a n^(-alpha / (1 + alpha))."""

    name = "learning-curve"
    source = Source("Hutter", 2021, "Learning Curve Theory", "arXiv:2102.04074")
    form = "error = a n^(-alpha / (1 + alpha))"
    inputs = ("examples",)
    target = "error"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("a", "1", 0.01, 100.0, "log", "size at one example"),
            Symbol("alpha", "1", 0.05, 5.0, "log", "frequency of feature k falls as k^-(1 + alpha)"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Chance of error on the next example."""
        c = coefficients
        return c["a"] * np.exp(-c["alpha"] / (1.0 + c["alpha"]) * np.log(inputs["examples"]))


def unseen_mass(frequencies: Floats, examples: int) -> float:
    """The expected error, exactly: probability of features that ``examples`` draws have not shown."""
    return float(frequencies @ np.exp(examples * np.log1p(-frequencies)))
