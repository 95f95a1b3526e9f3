"""Narayanan's idealised runtime: one request alone on known hardware takes a part per prompt and a part per token.

A handful of measurements give it for any lengths, so that models are compared free of queues and of an API's own
tricks; times the accelerators held, it is cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class IdealizedRuntime(Law):
    """time = a + b p + g o."""

    name = "idealized-runtime"
    source = Source(
        "Narayanan et al.",
        2023,
        "Cheaply Evaluating Inference Efficiency Metrics for Autoregressive Transformer APIs",
        "arXiv:2305.02440",
        catalogue=395,
    )
    form = "time = a + b p + g o; p tokens of prompt, o tokens of output"
    inputs = ("prompt_tokens", "output_tokens")
    target = "time_s"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients of one model, engine and machine."""
        return (
            Symbol("a", "s", 1e-4, 1.0, "log", "what every request takes"),
            Symbol("b", "s", 1e-7, 1e-2, "log", "per token of prompt"),
            Symbol("g", "s", 1e-4, 1.0, "log", "per token of output"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Seconds from request to last token."""
        c = coefficients
        return c["a"] + c["b"] * np.asarray(inputs["prompt_tokens"]) + c["g"] * np.asarray(inputs["output_tokens"])


def idealized_cost(time_s: Any, accelerators: int, usd_per_hour: float) -> Any:
    """Dollars of a request that holds its accelerators alone."""
    return time_s / 3600.0 * accelerators * usd_per_hour
