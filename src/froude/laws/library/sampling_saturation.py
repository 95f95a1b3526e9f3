"""TTSPM: parallel or sequential attempts succeed up to a ceiling, so that beyond some budget more is wasted.

The same bound holds for both kinds; `saturation_point` gives the budget where an attempt adds less than a threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class SamplingSaturation(Law):
    """success = F_max (1 - (1 - p)^k)."""

    name = "sampling-saturation"
    source = Source(
        "Wang et al.",
        2025,
        "Scaling over Scaling: Exploring Test-Time Scaling Pareto in Large Reasoning Models",
        "arXiv:2505.20522",
        catalogue=451,
    )
    form = "success = F_max (1 - (1 - p)^k)"
    inputs = ("samples",)
    target = "success"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients."""
        return (
            Symbol("F_max", "1", 0.05, 1.0, "bounded", "success with attempts without end"),
            Symbol("p", "1", 1e-4, 0.99, "bounded", "chance that one attempt succeeds where success is possible"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Chance of success, 0 to 1."""
        c = coefficients
        return c["F_max"] * (1.0 - np.exp(inputs["samples"] * np.log(1.0 - c["p"])))


def saturation_point(least_gain: float, coefficients: Values) -> int:
    """Attempts beyond which the next one adds less than ``least_gain`` to the chance of success."""
    ceiling, chance = coefficients["F_max"], coefficients["p"]
    if ceiling * chance <= least_gain:
        return 0
    return int(np.ceil(np.log(least_gain / (ceiling * chance)) / np.log(1.0 - chance)))
