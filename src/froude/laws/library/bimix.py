"""BiMix: a domain's loss falls as one power of its share of the mixture times another of training steps.

Two variables per domain suffice where the exponential law needs every share; good for domains that are in the mixture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Bimix(Law):
    """L_i = (B / s^beta + C) / r^alpha."""

    name = "bimix"
    source = Source(
        "Ge et al.",
        2024,
        "Data Mixing Made Efficient: A Bivariate Scaling Law for Language Model Pretraining",
        "arXiv:2405.14908",
        catalogue=289,
    )
    form = "L = (B / s^beta + C) / r^alpha; r the domain's own share"
    inputs = ("share", "steps")
    delta = 1e-2

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("B", "nats", 0.1, 1e4, "log", "size of the step term"),
            Symbol("beta", "1", 0.05, 1.2, "log", "exponent of steps"),
            Symbol("C", "nats", 0.2, 5.0, "log", "loss of the domain alone after many steps"),
            Symbol("alpha", "1", 0.005, 0.5, "log", "exponent of the share"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Validation loss of one domain."""
        c = coefficients
        steps = c["B"] * np.exp(-c["beta"] * np.log(inputs["steps"])) + c["C"]
        return steps * np.exp(-c["alpha"] * np.log(inputs["share"]))
