"""Retrieval: the size of the datastore as a third axis, beside parameters and training tokens.

MassiveDS measures curves that keep falling to 1.4T tokens and prints no formula; the form here, a power of the
datastore that reaches the model alone at none, is ours, and `worth` reads it as parameters saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Retrieval(Law):
    """L = E + A N^-alpha (1 + S / S_0)^-b."""

    name = "retrieval"
    source = Source(
        "Shao et al.",
        2024,
        "Scaling Retrieval-Based Language Models with a Trillion-Token Datastore",
        "arXiv:2407.12854",
        catalogue=5,
    )
    form = "L = E + A N^-alpha (1 + S / S_0)^-b; S tokens in the datastore"
    inputs = ("params", "datastore_tokens")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Five coefficients."""
        return (
            Symbol("E", "nats", 0.3, 2.5, "log", "irreducible loss"),
            Symbol("A", "nats", 1.0, 1e5, "log", "size of the parameter term"),
            Symbol("alpha", "1", 0.05, 0.6, "log", "exponent of parameters"),
            Symbol("S_0", "tokens", 1e6, 1e12, "log", "datastore below which retrieval hardly helps"),
            Symbol("b", "1", 0.01, 0.5, "log", "exponent of the datastore"),
        )

    def positive(self) -> tuple[str, ...]:
        """A datastore may be empty."""
        return ("params",)

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        size = -c["alpha"] * np.log(inputs["params"])
        return c["E"] + c["A"] * np.exp(size - c["b"] * np.log1p(inputs["datastore_tokens"] / c["S_0"]))


def worth(datastore_tokens: Any, coefficients: Values) -> Any:
    """How many times the parameters a model without retrieval needs for the same loss."""
    c = coefficients
    return np.exp(c["b"] / c["alpha"] * np.log1p(datastore_tokens / c["S_0"]))
