"""Kaplan's law in steps: loss after S updates at a batch well above the critical one, data without end.

Any other batch B counts as `minimum_steps`: S / (1 + B_crit / B), where the critical batch follows from the loss
(`loss-batch`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class KaplanSteps(Law):
    """L = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S."""

    name = "kaplan-steps"
    source = Source("Kaplan et al.", 2020, "Scaling Laws for Neural Language Models", "arXiv:2001.08361", catalogue=31)
    form = "L = (N_c / N)^alpha_N + (S_c / S_min)^alpha_S"
    inputs = ("params", "min_steps")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("alpha_N", "1", 0.02, 0.5, "log", "exponent of parameters"),
            Symbol("alpha_S", "1", 0.1, 2.0, "log", "exponent of steps"),
            Symbol("N_c", "parameters", 1e9, 1e17, "log", "parameters for a loss of 1 nat"),
            Symbol("S_c", "steps", 10.0, 1e5, "log", "steps for a loss of 1 nat above the model's"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        size = c["alpha_N"] * (np.log(c["N_c"]) - np.log(inputs["params"]))
        steps = c["alpha_S"] * (np.log(c["S_c"]) - np.log(inputs["min_steps"]))
        return np.exp(size) + np.exp(steps)


def minimum_steps(steps: Any, batch: Any, critical_batch: Any) -> Any:
    """What ``steps`` at a batch are worth in steps at a batch without end (equation 5.4)."""
    return steps / (1.0 + critical_batch / batch)
