"""Exponential growth in time, as cost of frontier training runs follows it, or computers' peak and bandwidth.

A record of the past: nothing in the form says when it ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

EPOCH = 2020.0


class Trend(Law):
    """value = a g^(year - 2020)."""

    name = "trend"
    source = Source(
        "Cottier et al.", 2024, "The Rising Costs of Training Frontier AI Models", "arXiv:2405.21015", catalogue=57
    )
    form = "value = a g^(year - 2020)"
    inputs = ("year",)
    target = "value"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("a", "the value's", 1e-6, 1e18, "log", "value in 2020"),
            Symbol("g", "1/year", 0.5, 10.0, "log", "growth per year"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """The quantity, in its own unit."""
        c = coefficients
        return np.exp(np.log(c["a"]) + np.log(c["g"]) * (inputs["year"] - EPOCH))
