"""Hestness's learning curve: generalisation error falls as a power of the training set, down to an irreducible part.

Model size is taken to grow with the data, so that data are what binds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Hestness(Law):
    """L = a D^-b + c."""

    name = "hestness"
    source = Source(
        "Hestness et al.", 2017, "Deep Learning Scaling is Predictable, Empirically", "arXiv:1712.00409", catalogue=21
    )
    form = "L = a D^-b + c"
    inputs = ("tokens",)

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients; b between 0 and 1 covers the paper's domains (0.07 to 0.35)."""
        return (
            Symbol("a", "nats", 1.0, 1e6, "log", "size of the term at D = 1"),
            Symbol("b", "1", 0.03, 1.0, "log", "exponent of data"),
            Symbol("c", "nats", 0.05, 3.0, "log", "irreducible error"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in the data's units."""
        c = coefficients
        return c["a"] * np.exp(-c["b"] * np.log(inputs["tokens"])) + c["c"]
