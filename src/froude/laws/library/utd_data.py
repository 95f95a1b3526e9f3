"""Value-based reinforcement learning: data to reach a return fall with updates per datum, down to a least amount.

Updates are data times their ratio sigma, so that data and compute lie on a frontier that sigma runs along: `best_ratio`
finds the point for prices of the two. Batch and rate follow `utd-batch` and `utd-rate`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class UtdData(Law):
    """D = D_min + (beta / sigma)^alpha."""

    name = "utd-data"
    source = Source("Rybkin et al.", 2025, "Value-Based Deep RL Scales Predictably", "arXiv:2502.04327", catalogue=44)
    form = "D = D_min + (beta / sigma)^alpha"
    inputs = ("updates_per_datum",)
    target = "environment_steps"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients, of one task and return."""
        return (
            Symbol("D_min", "steps", 1e3, 1e7, "log", "data needed however many updates are made"),
            Symbol("beta", "1", 1e3, 1e15, "log", "ratio at which the rest is one step"),
            Symbol("alpha", "1", 0.2, 2.0, "log", "exponent of the ratio"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Environment steps to reach the return."""
        c = coefficients
        return c["D_min"] + np.exp(c["alpha"] * (np.log(c["beta"]) - np.log(inputs["updates_per_datum"])))


def best_ratio(coefficients: Values, update_cost: float, datum_cost: float) -> float:
    """Updates per datum of least total cost (both costs per one, in the same unit)."""
    ratios = np.geomspace(1e-4, 1e4, 4001)
    data = UtdData().predict({"updates_per_datum": ratios}, coefficients)
    return float(ratios[int(np.argmin(data * (datum_cost + ratios * update_cost)))])
