"""The commonest form, shared by the laws that are one power of one quantity."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class Power(Law):
    """target = k input^a; a law gives names, units and ranges."""

    unit: ClassVar[str]
    scale: ClassVar[tuple[float, float]]
    exponent: ClassVar[tuple[float, float]]
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        (name,) = self.inputs
        return (
            Symbol("k", self.unit, *self.scale, "log", f"{self.target} at one unit of {name}"),
            Symbol("a", "1", *self.exponent, "linear", f"exponent of {name}"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """The power."""
        (name,) = self.inputs
        return np.exp(np.log(coefficients["k"]) + coefficients["a"] * np.log(inputs[name]))
