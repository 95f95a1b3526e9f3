"""Su's recipe: loss of any batch from few constants, because S steps at batch B do the work of S / (1 + B*/B) at none.

Constants come from runs of 1M to 60M parameters and predict training curves of models to 33B, in Kaplan's form with
the minimum steps in place of data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class FiniteBatch(Law):
    """L = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S with S_min = S / (1 + B_c / B)."""

    name = "finite-batch"
    source = Source(
        "Su et al.", 2024, "Unraveling the Mystery of Scaling Laws: Part I", "arXiv:2403.06563", catalogue=244
    )
    form = "L = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S; S_min = S / (1 + B_c / B)"
    inputs = ("params", "steps", "batch_tokens")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Five coefficients; the critical batch at the losses of the data at hand."""
        return (
            Symbol("N_c", "parameters", 1e10, 1e16, "log", "parameters for a loss of 1 nat"),
            Symbol("alpha_N", "1", 0.03, 0.2, "log", "exponent of parameters"),
            Symbol("S_c", "steps", 1.0, 1e5, "log", "steps for a loss of 1 nat"),
            Symbol("alpha_S", "1", 0.2, 1.5, "log", "exponent of steps"),
            Symbol("B_c", "tokens", 1e3, 1e8, "log", "critical batch"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        least_steps = inputs["steps"] / (1.0 + c["B_c"] / inputs["batch_tokens"])
        by_size = np.exp(c["alpha_N"] * (np.log(c["N_c"]) - np.log(inputs["params"])))
        return by_size + np.exp(c["alpha_S"] * (np.log(c["S_c"]) - np.log(least_steps)))
