"""Theory: networks interpolate on the data's manifold, so that exponents are four over its dimension.

Both too few parameters and too few tokens leave the manifold sampled at a distance of N^-1/d; a smooth function
interpolated piecewise linearly then errs, squared, by its fourth power. Bahri et al. call this resolution-limited.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values

SMOOTHNESS = 4.0  # squared error of piecewise linear interpolation: the distance to the fourth power


class Manifold(Law):
    """L = E + A N^(-4/d) + B D^(-4/d)."""

    name = "manifold"
    source = Source(
        "Sharma and Kaplan", 2020, "A Neural Scaling Law from the Dimension of the Data Manifold", "arXiv:2004.10802"
    )
    form = "L = E + A N^(-4/d) + B D^(-4/d)"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("E", "nats", 0.1, 3.0, "log", "irreducible loss"),
            Symbol("A", "nats", 1.0, 1e5, "log", "size of the parameter term"),
            Symbol("B", "nats", 1.0, 1e5, "log", "size of the token term"),
            Symbol("d", "dimensions", 4.0, 100.0, "log", "intrinsic dimension of the data"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        exponent = SMOOTHNESS / c["d"]
        size, data = (np.exp(-exponent * np.log(inputs[name])) for name in self.inputs)
        return c["E"] + c["A"] * size + c["B"] * data
