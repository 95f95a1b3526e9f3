"""Step Law: the best peak learning rate is a power law in parameters and tokens.

From grids of learning rate and batch at fixed size and data, where loss is a convex bowl; dense models and mixtures of
experts share it. Its batch is `step-law-batch`, its bowl `loss-bowl`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class StepLaw(Law):
    """lr = c N^a D^b."""

    name = "step-law"
    source = Source(
        "Li et al.",
        2025,
        "Predictable Scale: Part I, Optimal Hyperparameter Scaling Law in Large Language Model Pretraining",
        "arXiv:2503.04715",
        catalogue=169,
    )
    form = "lr = c N^a D^b"
    target = "learning_rate"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("c", "1", 1e-4, 1e4, "log", "learning rate at N = D = 1"),
            Symbol("a", "1", -1.5, 0.5, "linear", "exponent of parameters"),
            Symbol("b", "1", -0.8, 0.8, "linear", "exponent of tokens"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Peak learning rate of AdamW."""
        c = coefficients
        return np.exp(np.log(c["c"]) + c["a"] * np.log(inputs["params"]) + c["b"] * np.log(inputs["tokens"]))
