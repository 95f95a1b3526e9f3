"""Hoffmann's approach 3: loss is an irreducible part plus power laws in parameters and tokens.

Fitted by L-BFGS on a Huber loss of log residuals; good within a decade or two of its runs, at one epoch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values

FLOPS_PER_PARAM_TOKEN = 6.0  # forward and backward of one multiply-add per parameter and token


class Hoffmann(Law):
    """L = E + A / N^alpha + B / D^beta."""

    name = "hoffmann"
    source = Source(
        "Hoffmann et al.", 2022, "Training Compute-Optimal Large Language Models", "arXiv:2203.15556", catalogue=None
    )
    form = "L = E + A / N^alpha + B / D^beta"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Five coefficients; starts span what published fits of this form have found."""
        return (
            Symbol("E", "nats", 0.3, 3.0, "log", "irreducible loss"),
            Symbol("A", "nats", 1.0, 1e7, "log", "size of the parameter term at N = 1"),
            Symbol("B", "nats", 1.0, 1e10, "log", "size of the token term at D = 1"),
            Symbol("alpha", "1", 0.05, 1.0, "log", "exponent of parameters"),
            Symbol("beta", "1", 0.05, 1.0, "log", "exponent of tokens"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        return c["E"] + c["A"] * inputs["params"] ** -c["alpha"] + c["B"] * inputs["tokens"] ** -c["beta"]

    def gradient(self, inputs: Values, coefficients: Values) -> tuple[Floats, list[Floats]]:
        """Closed form: several times cheaper than the complex step, for the most used law."""
        c = coefficients
        log_n, log_d = np.log(inputs["params"]), np.log(inputs["tokens"])
        n_power, d_power = np.exp(-c["alpha"] * log_n), np.exp(-c["beta"] * log_d)
        n_term, d_term = c["A"] * n_power, c["B"] * d_power
        one = np.ones_like(n_term)
        return c["E"] + n_term + d_term, [one, n_power, d_power, -log_n * n_term, -log_d * d_term]

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """Where both terms' marginal gains per FLOP are equal (the paper's equation 4)."""
        c = coefficients
        total = c["alpha"] + c["beta"]
        scale = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1.0 / total)
        params = scale * (flops / FLOPS_PER_PARAM_TOKEN) ** (c["beta"] / total)
        return {"params": params, "tokens": flops / FLOPS_PER_PARAM_TOKEN / params}
