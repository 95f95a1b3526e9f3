"""Kumar's post-training quantisation: the more data a model saw, the more a rounding of its weights costs.

Degradation grows with tokens and falls with parameters and, exponentially, with bits; past a point data hurt.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class PostQuantisation(Law):
    """dL = C_T D^gamma_D N^-gamma_N exp(-P / gamma_post)."""

    name = "post-quantisation"
    source = Source(
        "Kumar et al.",
        2024,
        "Scaling Laws for Precision",
        "arXiv:2411.04330",
        catalogue=285,
    )
    form = "dL = C_T D^gamma_D N^-gamma_N exp(-P / gamma_post)"
    inputs = ("params", "tokens", "weight_bits")
    target = "loss_increase"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("C_T", "nats", 1e-4, 10.0, "log", "size"),
            Symbol("gamma_D", "1", 0.1, 1.0, "log", "exponent of tokens"),
            Symbol("gamma_N", "1", 0.1, 1.0, "log", "exponent of parameters"),
            Symbol("gamma_post", "bits", 0.1, 5.0, "log", "bits that divide the loss by e"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Rise of loss when weights are rounded to that many bits."""
        c = coefficients
        size = c["gamma_D"] * np.log(inputs["tokens"]) - c["gamma_N"] * np.log(inputs["params"])
        return c["C_T"] * np.exp(size - inputs["weight_bits"] / c["gamma_post"])
