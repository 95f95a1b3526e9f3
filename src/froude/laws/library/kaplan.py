"""Kaplan's joint law: loss of a model of N non-embedding parameters trained to early stopping on D tokens.

No irreducible loss; its allocation (large models, few tokens) comes from short warm-up and untuned small runs, as
Porian et al. (2024) show.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values

FLOPS_PER_PFLOP_DAY = 8.64e19
# Section 6.1: N_opt = 1.3e9 * (C_min in PF-days)^0.73.
N_AT_ONE_PFLOP_DAY, N_EXPONENT = 1.3e9, 0.73


class Kaplan(Law):
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D."""

    name = "kaplan"
    source = Source(
        "Kaplan et al.",
        2020,
        "Scaling Laws for Neural Language Models",
        "arXiv:2001.08361",
        catalogue=31,
    )
    form = "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("alpha_N", "1", 0.02, 0.5, "log", "exponent of parameters"),
            Symbol("alpha_D", "1", 0.02, 0.5, "log", "exponent of tokens"),
            Symbol("N_c", "parameters", 1e9, 1e17, "log", "parameters for a loss of 1 nat"),
            Symbol("D_c", "tokens", 1e9, 1e17, "log", "tokens for a loss of 1 nat"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        capacity = np.exp(c["alpha_N"] / c["alpha_D"] * (np.log(c["N_c"]) - np.log(inputs["params"])))
        return np.exp(c["alpha_D"] * np.log(capacity + c["D_c"] / inputs["tokens"]))

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """The paper's own frontier, from its fits of loss against steps at a critical batch."""
        params = N_AT_ONE_PFLOP_DAY * (flops / FLOPS_PER_PFLOP_DAY) ** N_EXPONENT
        return {"params": params, "tokens": flops / 6.0 / params}
