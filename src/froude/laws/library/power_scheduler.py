"""The power scheduler's rate: the best learning rate over the batch is a power of tokens seen, whatever the batch.

One setting then serves every budget, and with muP every size; it is the plateau of a warm-up, power, cool-down shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class PowerScheduler(Law):
    """lr = a B T^b, B in sequences, T in tokens."""

    name = "power-scheduler"
    source = Source(
        "Shen et al.",
        2024,
        "Power Scheduler: A Batch Size and Token Number Agnostic Learning Rate Scheduler",
        "arXiv:2408.13359",
        catalogue=165,
    )
    form = "lr = a B T^b"
    inputs = ("batch", "tokens")
    target = "learning_rate"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("a", "1", 1e-6, 1e4, "log", "rate of one sequence at the first token"),
            Symbol("b", "1", -1.0, 0.2, "linear", "exponent of tokens"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Learning rate."""
        c = coefficients
        return np.exp(np.log(c["a"]) + np.log(inputs["batch"]) + c["b"] * np.log(inputs["tokens"]))
