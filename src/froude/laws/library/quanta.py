"""Theory: knowledge comes in quanta used with Zipf frequencies, learned in order of use; their tail is the loss.

A model of N parameters holds N / c quanta; D tokens show the first (D / tau)^(1 / (1 + alpha)) often enough. One
exponent gives both: alpha for parameters, alpha / (1 + alpha) for tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Quanta(Law):
    """L = E + (N / N_1)^-alpha + (D / D_1)^(-alpha / (1 + alpha))."""

    name = "quanta"
    source = Source("Michaud et al.", 2023, "The Quantization Model of Neural Scaling", "arXiv:2303.13506")
    form = "L = E + (N / N_1)^-alpha + (D / D_1)^(-alpha / (1 + alpha))"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("E", "nats", 0.1, 3.0, "log", "irreducible loss"),
            Symbol("N_1", "parameters", 1e3, 1e10, "log", "parameters where their term is one nat"),
            Symbol("D_1", "tokens", 1e3, 1e12, "log", "tokens where their term is one nat"),
            Symbol("alpha", "1", 0.05, 1.5, "log", "use of quantum k falls as k^-(1 + alpha)"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        size = -c["alpha"] * (np.log(inputs["params"]) - np.log(c["N_1"]))
        data = -c["alpha"] / (1.0 + c["alpha"]) * (np.log(inputs["tokens"]) - np.log(c["D_1"]))
        return c["E"] + np.exp(size) + np.exp(data)
