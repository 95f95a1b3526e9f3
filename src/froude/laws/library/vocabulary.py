"""Tao's vocabulary law: parameters outside and inside the vocabulary have their own exponents, tokens a third.

Loss is normalised by a unigram model, so it is negative and comparable across vocabularies; the best vocabulary grows
with the model, more slowly than it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values

# The paper counts parameters in millions and tokens in thousand millions (FLOPs in 1e15).
PARAMS_UNIT, TOKENS_UNIT = 1e6, 1e9


class Vocabulary(Law):
    """L_u = -E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / D^alpha1 with D = C / (6 (N_nv + N_v))."""

    name = "vocabulary"
    source = Source(
        "Tao et al.",
        2024,
        "Scaling Laws with Vocabulary: Larger Models Deserve Larger Vocabularies",
        "arXiv:2407.13623",
        catalogue=269,
    )
    form = "L_u = -E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / D^alpha1; D = C / (6 (N_nv + N_v))"
    inputs = ("non_vocab_params", "vocab_params", "flops")
    residual = "linear"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Six coefficients; the paper ties the exponents of N_nv and D."""
        return (
            Symbol("E", "nats", 3.0, 8.0, "linear", "unigram-normalised loss never reached"),
            Symbol("A1", "nats", 0.3, 20.0, "log", "size of the non-vocabulary term, N in millions"),
            Symbol("A2", "nats", 0.01, 5.0, "log", "size of the vocabulary term, N in millions"),
            Symbol("B", "nats", 0.3, 20.0, "log", "size of the token term, D in thousand millions"),
            Symbol("alpha1", "1", 0.1, 1.0, "log", "exponent of non-vocabulary parameters and of tokens"),
            Symbol("alpha2", "1", 0.05, 2.0, "bounded", "exponent of vocabulary parameters"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Unigram-normalised loss in nats per token."""
        c = coefficients
        body, vocab = inputs["non_vocab_params"], inputs["vocab_params"]
        tokens = inputs["flops"] / (6.0 * (body + vocab))
        return (
            -c["E"]
            + c["A1"] * np.exp(-c["alpha1"] * np.log(body / PARAMS_UNIT))
            + c["A2"] * np.exp(-c["alpha2"] * np.log(vocab / PARAMS_UNIT))
            + c["B"] * np.exp(-c["alpha1"] * np.log(tokens / TOKENS_UNIT))
        )


def best_vocabulary(non_vocab_params: float, width: float, flops: float, coefficients: Values) -> float:
    """The vocabulary of least loss at a budget, for a body of given size and width."""
    from scipy.optimize import minimize_scalar

    def loss(log_vocab: float) -> float:
        inputs = {"non_vocab_params": non_vocab_params, "vocab_params": np.exp(log_vocab) * width, "flops": flops}
        return float(Vocabulary().predict(inputs, coefficients))

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(256.0), np.log(4e6)), method="bounded").x))
