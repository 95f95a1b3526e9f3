"""Fernandes' law of multilingual translation: a language's weight changes how much of the model it has, nothing else.

All weights share exponent and floor, so that a share p acts as a model of f(p) N parameters; f is above p where
languages help one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Multilingual(Law):
    """L = b (f(p) N)^-alpha + L_inf with f(p) = p + c_1 p^c_2 (1 - p)^c_3."""

    name = "multilingual"
    source = Source(
        "Fernandes et al.",
        2023,
        "Scaling Laws for Multilingual Neural Machine Translation",
        "arXiv:2302.09650",
        catalogue=326,
    )
    form = "L = b (f(p) N)^-alpha + L_inf; f(p) = p + c_1 p^c_2 (1 - p)^c_3"
    inputs = ("params", "share")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Six coefficients of one language pair."""
        return (
            Symbol("b", "nats", 1.0, 1e4, "log", "size of the reducible loss"),
            Symbol("alpha", "1", 0.05, 0.7, "log", "exponent of parameters"),
            Symbol("L_inf", "nats", 0.3, 2.5, "log", "irreducible loss"),
            Symbol("c_1", "1", 0.01, 2.0, "log", "how much of the model is shared"),
            Symbol("c_2", "1", 0.1, 2.0, "bounded", "how soon small shares profit"),
            Symbol("c_3", "1", 0.1, 2.0, "bounded", "how late large shares still do"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss of the language pair, in nats per token."""
        c = coefficients
        size = np.log(inputs["params"]) + np.log(effective_fraction(inputs["share"], c))
        return c["b"] * np.exp(-c["alpha"] * size) + c["L_inf"]


def effective_fraction(share: Any, coefficients: Values) -> Any:
    """f(p): the part of the parameters that a language with this share of the mixture has; all at p = 1."""
    c = coefficients
    rest = np.maximum(1.0 - np.asarray(share, dtype=float), 1e-300)
    return share + c["c_1"] * np.exp(c["c_2"] * np.log(share) + c["c_3"] * np.log(rest))
