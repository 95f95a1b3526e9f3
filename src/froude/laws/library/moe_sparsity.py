"""Abnar's sparsity law: power laws in total parameters and in tokens, and two terms for the share of inactive ones.

At fixed total size more sparsity costs loss, at fixed training FLOPs it gains, and the optimum moves towards more
sparsity with size and budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class MoeSparsity(Law):
    """L = a / N^alpha + b / D^beta + c / (1 - S)^lambda + d / ((1 - S)^delta N^gamma) + e."""

    name = "moe-sparsity"
    source = Source(
        "Abnar et al.",
        2025,
        "Parameters vs FLOPs: Scaling Laws for Optimal Sparsity for Mixture-of-Experts Language Models",
        "arXiv:2501.12370",
        catalogue=278,
    )
    form = "L = a / N^alpha + b / D^beta + c / (1-S)^lambda + d / ((1-S)^delta N^gamma) + e; N in all, S inactive share"
    inputs = ("params", "tokens", "active_share")
    delta = 1e-3

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Ten coefficients; the input is the active share 1 - S."""
        return (
            Symbol("a", "nats", 1.0, 1e5, "log", "size of the parameter term"),
            Symbol("alpha", "1", 0.05, 1.0, "bounded", "exponent of total parameters"),
            Symbol("b", "nats", 1.0, 1e6, "log", "size of the token term"),
            Symbol("beta", "1", 0.05, 1.0, "bounded", "exponent of tokens"),
            Symbol("c", "nats", 1e-4, 1.0, "log", "cost of sparsity alone"),
            Symbol("lambda", "1", 0.01, 1.0, "bounded", "exponent of the active share"),
            Symbol("d", "nats", 1e-2, 1e4, "log", "cost of sparsity for small models"),
            Symbol("delta", "1", 0.01, 1.0, "bounded", "exponent of the active share in the joint term"),
            Symbol("gamma", "1", 0.01, 1.0, "bounded", "exponent of parameters in the joint term"),
            Symbol("e", "nats", 0.3, 2.5, "log", "irreducible loss"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        params, tokens, active = (np.log(inputs[name]) for name in self.inputs)
        return (
            c["a"] * np.exp(-c["alpha"] * params)
            + c["b"] * np.exp(-c["beta"] * tokens)
            + c["c"] * np.exp(-c["lambda"] * active)
            + c["d"] * np.exp(-c["delta"] * active - c["gamma"] * params)
            + c["e"]
        )
