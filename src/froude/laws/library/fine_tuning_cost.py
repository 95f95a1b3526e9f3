"""Xia's cost of fine-tuning mixtures of experts: throughput grows with the logarithm of the batch, up to what fits.

Coefficients belong to one GPU, model and data set; `largest_batch` is the memory side, and the two give dollars.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class FineTuningCost(Law):
    """throughput = c_2 ln(batch / share^c_3) + c_4."""

    name = "fine-tuning-cost"
    source = Source(
        "Xia et al.",
        2024,
        "Understanding the Performance and Estimating the Cost of LLM Fine-Tuning",
        "arXiv:2408.04693",
        catalogue=239,
    )
    form = "throughput = c_2 ln(batch / share^c_3) + c_4; share of experts active"
    inputs = ("batch", "active_share")
    target = "queries_per_s"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("c_2", "1/s", 0.01, 10.0, "log", "gain from e times the batch"),
            Symbol("c_3", "1", 0.01, 2.0, "log", "how much active experts cost"),
            Symbol("c_4", "1/s", 0.01, 10.0, "log", "queries per second one by one, all experts active"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Queries per second."""
        c = coefficients
        return c["c_2"] * (np.log(inputs["batch"]) - c["c_3"] * np.log(inputs["active_share"])) + c["c_4"]


def largest_batch(
    memory_bytes: float,
    model_bytes: float,
    sequence: float,
    active_share: float,
    tokens_per_byte: float,
    moe_part: float,
) -> int:
    """Queries that fit: what the model leaves, over tokens that grow with the active share of the experts' part.

    Args:
        tokens_per_byte: the paper's C_0, tokens of activations per byte with all experts active.
        moe_part: the paper's C_1, the part of the activations that belongs to experts.
    """
    per_query = sequence * ((1.0 - moe_part) + moe_part * active_share)
    return int(tokens_per_byte * (memory_bytes - model_bytes) / per_query)
