"""Kumar's precision law: training in few bits acts as a smaller model, by weights, activations and cache together.

Each kind of number saturates exponentially in its bits, so that the effective parameters are a product of three.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Precision(Law):
    """L = A N_eff^-alpha + B D^-beta + E; N_eff = N prod_i (1 - exp(-P_i / gamma_i))."""

    name = "precision"
    source = Source(
        "Kumar et al.",
        2024,
        "Scaling Laws for Precision",
        "arXiv:2411.04330",
        catalogue=285,
    )
    form = "L = A N_eff^-alpha + B D^-beta + E; N_eff = N prod_i (1 - exp(-P_i / gamma_i))"
    inputs = ("params", "tokens", "weight_bits", "activation_bits", "cache_bits")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("A", "nats", 10.0, 1e5, "log", "size of the parameter term"),
            Symbol("alpha", "1", 0.1, 0.9, "log", "exponent of effective parameters"),
            Symbol("B", "nats", 10.0, 1e6, "log", "size of the token term"),
            Symbol("beta", "1", 0.1, 0.9, "log", "exponent of tokens"),
            Symbol("E", "nats", 0.5, 3.5, "log", "irreducible loss"),
            Symbol("gamma_w", "bits", 0.3, 8.0, "log", "weights"),
            Symbol("gamma_a", "bits", 0.3, 8.0, "log", "activations"),
            Symbol("gamma_kv", "bits", 0.1, 8.0, "log", "keys and values"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        bits = (("weight_bits", "gamma_w"), ("activation_bits", "gamma_a"), ("cache_bits", "gamma_kv"))
        worth = np.log(inputs["params"]) + sum(np.log(1.0 - np.exp(-inputs[kind] / c[gamma])) for kind, gamma in bits)
        data = c["B"] * np.exp(-c["beta"] * np.log(inputs["tokens"]))
        return c["A"] * np.exp(-c["alpha"] * worth) + data + c["E"]
