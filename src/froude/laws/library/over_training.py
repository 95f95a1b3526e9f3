"""Gadre's over-training law: with tokens per parameter M held fixed, loss is a power law in compute of one exponent.

Equal exponents of N and D make curves of different M parallel, so that runs far beyond 20 tokens per parameter can be
extrapolated from small ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class OverTraining(Law):
    """L = E + a N^-x + b 6^(-x/2) D^-x, that is E + (a M^(x/2) + b M^(-x/2)) C^(-x/2) up to constants."""

    name = "over-training"
    source = Source(
        "Gadre et al.",
        2024,
        "Language models scale reliably with over-training and on downstream tasks",
        "arXiv:2403.08540",
        catalogue=273,
    )
    form = "L = E + a N^-x + b 6^(-x/2) D^-x"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("E", "nats", 0.3, 3.0, "log", "irreducible loss"),
            Symbol("a", "nats", 1.0, 1e5, "log", "size of the parameter term"),
            Symbol("b", "nats", 1.0, 1e5, "log", "size of the token term"),
            Symbol("x", "1", 0.1, 0.6, "log", "exponent of parameters and tokens; twice that of compute"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        by_params = c["a"] * np.exp(-c["x"] * np.log(inputs["params"]))
        return c["E"] + by_params + c["b"] * np.exp(-c["x"] * (np.log(inputs["tokens"]) + 0.5 * np.log(6.0)))

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """Marginal gains of N and D equal: a / N^x = b / (sqrt(6) D)^x, so D/N is the same at every budget."""
        c = coefficients
        ratio = (c["b"] / c["a"]) ** (1.0 / c["x"]) / np.sqrt(6.0)
        params = np.sqrt(flops / 6.0 / ratio)
        return {"params": params, "tokens": ratio * params}
