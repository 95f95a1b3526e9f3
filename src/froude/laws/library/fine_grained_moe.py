"""Krajewski's law of fine-grained experts: splitting each expert into G smaller ones lowers the parameter term.

With granularity tuned, mixtures stay ahead of dense models at any budget. N counts the parameters of all experts: only
so do the coefficients give the paper's compute-optimal models and their losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class FineGrainedMoe(Law):
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta."""

    name = "fine-grained-moe"
    source = Source(
        "Krajewski et al.",
        2024,
        "Scaling Laws for Fine-Grained Mixture of Experts",
        "arXiv:2402.07871",
    )
    form = "L = c + (g / G^gamma + a) / N^alpha + b / D^beta"
    inputs = ("params", "tokens", "granularity")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("c", "nats", 0.2, 2.5, "log", "irreducible loss"),
            Symbol("g", "nats", 0.1, 50.0, "log", "what granularity can gain"),
            Symbol("gamma", "1", 0.1, 2.0, "log", "exponent of granularity"),
            Symbol("a", "nats", 1.0, 1e3, "log", "size of the parameter term"),
            Symbol("alpha", "1", 0.05, 0.6, "log", "exponent of parameters, all experts counted"),
            Symbol("b", "nats", 1.0, 1e4, "log", "size of the token term"),
            Symbol("beta", "1", 0.05, 0.6, "log", "exponent of tokens"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        fine = c["g"] * np.exp(-c["gamma"] * np.log(inputs["granularity"])) + c["a"]
        by_params = fine * np.exp(-c["alpha"] * np.log(inputs["params"]))
        return c["c"] + by_params + c["b"] * np.exp(-c["beta"] * np.log(inputs["tokens"]))
