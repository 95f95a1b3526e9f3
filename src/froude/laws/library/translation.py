"""Ghorbani's law of encoder-decoder translation: loss is a product of powers of encoder and decoder size.

The two exponents give the best split of a parameter budget: shares in proportion to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Translation(Law):
    """L = a N_e^-p_e N_d^-p_d + L_inf."""

    name = "translation"
    source = Source(
        "Ghorbani et al.", 2021, "Scaling Laws for Neural Machine Translation", "arXiv:2109.07740", catalogue=319
    )
    form = "L = a N_e^-p_e N_d^-p_d + L_inf"
    inputs = ("encoder_params", "decoder_params")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("a", "nats", 1.0, 1e5, "log", "size of the reducible loss"),
            Symbol("p_e", "1", 0.02, 0.6, "log", "exponent of the encoder"),
            Symbol("p_d", "1", 0.02, 0.6, "log", "exponent of the decoder"),
            Symbol("L_inf", "nats", 0.2, 2.5, "log", "irreducible loss"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        sizes = c["p_e"] * np.log(inputs["encoder_params"]) + c["p_d"] * np.log(inputs["decoder_params"])
        return c["a"] * np.exp(-sizes) + c["L_inf"]


def best_split(params: Any, coefficients: Values) -> tuple[Any, Any]:
    """Encoder and decoder parameters of least loss for a number in all: in proportion to the exponents."""
    share = coefficients["p_e"] / (coefficients["p_e"] + coefficients["p_d"])
    return params * share, params * (1.0 - share)
