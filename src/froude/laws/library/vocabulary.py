"""Tao's vocabulary law: parameters outside and inside the vocabulary have their own exponents, data a third.

Loss is normalised by a unigram model, so it is negative and comparable across vocabularies; the best vocabulary grows
with the model, more slowly than it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values

# The paper's approach 3 counts parameters in millions, width in thousands and FLOPs in units of 1e15.
PARAMS_UNIT, WIDTH_UNIT, FLOPS_UNIT = 1e6, 1e3, 1e15


class Vocabulary(Law):
    """L_u = -E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / C'^beta."""

    name = "vocabulary"
    source = Source(
        "Tao et al.",
        2024,
        "Scaling Laws with Vocabulary: Larger Models Deserve Larger Vocabularies",
        "arXiv:2407.13623",
        catalogue=269,
    )
    form = "L_u = -E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / H^beta (millions of parameters and characters)"
    inputs = ("non_vocab_params", "vocab_params", "characters")
    residual = "linear"
    delta = 1e-3

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Seven coefficients."""
        return (
            Symbol("E", "nats", 3.0, 8.0, "linear", "unigram-normalised loss never reached"),
            Symbol("A1", "nats", 0.3, 20.0, "log", "size of the non-vocabulary term"),
            Symbol("A2", "nats", 0.01, 5.0, "log", "size of the vocabulary term"),
            Symbol("B", "nats", 1.0, 500.0, "log", "size of the data term"),
            Symbol("alpha1", "1", 0.1, 1.0, "log", "exponent of non-vocabulary parameters"),
            Symbol("alpha2", "1", 0.1, 1.5, "log", "exponent of vocabulary parameters"),
            Symbol("beta", "1", 0.1, 1.0, "log", "exponent of characters"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Unigram-normalised loss in nats per token."""
        c = coefficients
        body = c["A1"] * np.exp(-c["alpha1"] * np.log(inputs["non_vocab_params"] / PARAMS_UNIT))
        vocab = c["A2"] * np.exp(-c["alpha2"] * np.log(inputs["vocab_params"] / PARAMS_UNIT))
        data = c["B"] * np.exp(-c["beta"] * np.log(inputs["characters"] / PARAMS_UNIT))
        return -c["E"] + body + vocab + data
