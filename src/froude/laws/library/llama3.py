"""Llama 3's allocation: compute-optimal tokens are a power of the budget, from isoFLOP curves of its own data.

The run it sized has 402B parameters at 3.8e25 FLOPs; its exponent is above one half, so larger budgets buy tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

# 3.8e25 FLOPs over the 402B parameters and 16.55T tokens that section 3.2.1 derives from them.
FLOPS_PER_PARAM_TOKEN = 5.712


class Llama3(Law):
    """D* = A C^alpha."""

    name = "llama3"
    source = Source("Llama Team", 2024, "The Llama 3 Herd of Models", "arXiv:2407.21783")
    form = "D* = A C^alpha"
    inputs = ("flops",)
    target = "tokens"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("A", "tokens", 1e-4, 1e3, "log", "tokens at one FLOP"),
            Symbol("alpha", "1", 0.2, 0.9, "log", "exponent of compute"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Compute-optimal tokens."""
        return np.exp(np.log(coefficients["A"]) + coefficients["alpha"] * np.log(inputs["flops"]))

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """Tokens from the law, parameters from the FLOPs left."""
        tokens = self.predict({"flops": flops}, coefficients)
        return {"params": flops / FLOPS_PER_PARAM_TOKEN / tokens, "tokens": tokens}
