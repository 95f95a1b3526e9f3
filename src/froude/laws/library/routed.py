"""Clark's law of routed language models: each expert-routed model is worth a dense one of more parameters.

Bilinear in log size and log experts, with expert counts that saturate at both ends; the gain from routing shrinks as
the dense part grows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class Routed(Law):
    """log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d."""

    name = "routed"
    source = Source(
        "Clark et al.", 2022, "Unified Scaling Laws for Routed Language Models", "arXiv:2202.01169", catalogue=69
    )
    form = "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d; E^ saturates from E_start to E_max"
    inputs = ("params", "experts")
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Six coefficients; N counts the dense part."""
        return (
            Symbol("a", "1", -0.2, -0.02, "linear", "slope in dense size"),
            Symbol("b", "1", -0.3, -0.01, "linear", "slope in experts"),
            Symbol("c", "1", 0.0, 0.05, "linear", "how the gain from experts shrinks with size"),
            Symbol("d", "1", 0.5, 1.6, "linear", "log10 loss of a dense model of one parameter"),
            Symbol("E_start", "experts", 1.0, 8.0, "log", "effective experts of a dense model"),
            Symbol("E_max", "experts", 100.0, 1000.0, "log", "effective experts at most"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        size, experts = np.log10(inputs["params"]), np.log10(effective_experts(inputs["experts"], c))
        return 10.0 ** (c["a"] * size + c["b"] * experts + c["c"] * size * experts + c["d"])


def effective_experts(experts: Any, c: Values) -> Any:
    """E^: 1/E^ = 1 / (E - 1 + 1 / (1/E_start - 1/E_max)) + 1/E_max."""
    return 1.0 / (1.0 / (experts - 1.0 + 1.0 / (1.0 / c["E_start"] - 1.0 / c["E_max"])) + 1.0 / c["E_max"])


def dense_equivalent(params: float, experts: float, coefficients: Values) -> float:
    """Effective parameter count: the dense model (E = 1) of the same loss."""
    c = coefficients
    base = np.log10(effective_experts(1.0, c))
    with_experts = np.log10(effective_experts(experts, c))
    size = np.log10(params)
    dense = ((c["a"] + c["c"] * with_experts) * size + c["b"] * (with_experts - base)) / (c["a"] + c["c"] * base)
    return float(10.0**dense)
