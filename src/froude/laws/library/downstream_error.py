"""Gadre's downstream law: average top-1 error falls exponentially with decreasing loss, from a chance-like ceiling.

Holds for averages over many tasks, one validation set and models trained on like data; single tasks are noisy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class DownstreamError(Law):
    """Err = epsilon - k exp(-gamma L)."""

    name = "downstream-error"
    source = Source(
        "Gadre et al.",
        2024,
        "Language models scale reliably with over-training and on downstream tasks",
        "arXiv:2403.08540",
        catalogue=273,
    )
    form = "error = epsilon - k exp(-gamma L)"
    inputs = ("loss",)
    target = "error"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("epsilon", "1", 0.3, 1.0, "log", "error of a model that knows nothing"),
            Symbol("k", "1", 0.1, 30.0, "log", "size of the gain at zero loss"),
            Symbol("gamma", "1/nat", 0.1, 3.0, "log", "how fast error follows loss"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Average top-1 error, 0 to 1."""
        c = coefficients
        return c["epsilon"] - c["k"] * np.exp(-c["gamma"] * inputs["loss"])
