"""COD: a benchmark's score against compute, from the cluster of its questions that scale, then mapped to all of them.

Accuracy leaves guessing as loss, itself a power of compute, makes every step of an answer likelier. Questions that no
small model gets, or that scale unlike the rest, are left out of the fit (`scalable`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class ClusteredDownstream(Law):
    """accuracy = g + (1 - g) exp(-a C^-b - c)."""

    name = "clustered-downstream"
    source = Source(
        "Xu et al.",
        2025,
        "Unveiling Downstream Performance Scaling of LLMs: A Clustering-Based Perspective",
        "arXiv:2502.17262",
        catalogue=433,
    )
    form = "accuracy = g + (1 - g) exp(-a C^-b - c)"
    inputs = ("flops", "chance")
    target = "accuracy"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients; the score of guessing is known."""
        return (
            Symbol("a", "1", 1e-1, 1e12, "log", "minus log accuracy at one FLOP"),
            Symbol("b", "1", 0.02, 0.6, "log", "exponent of compute"),
            Symbol("c", "1", 1e-4, 1.0, "log", "minus log of the accuracy of endless compute"),
        )

    def positive(self) -> tuple[str, ...]:
        """Where answers are free text, guessing scores nothing."""
        return ("flops",)

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Accuracy, 0 to 1."""
        c = coefficients
        able = np.exp(-c["a"] * np.exp(-c["b"] * np.log(inputs["flops"])) - c["c"])
        return inputs["chance"] + (1.0 - inputs["chance"]) * able


def scalable(pass_rates: Floats, least_gain: float = 0.1, most_drop: float = 0.1) -> Any:
    """Which questions to fit, from their pass rates (questions, models by rising compute).

    Those kept rise from first to last by at least ``least_gain`` and never fall from one model to the next by more than
    ``most_drop``.
    """
    steps = np.diff(pass_rates, axis=1)
    return (pass_rates[:, -1] - pass_rates[:, 0] >= least_gain) & (steps.min(axis=1) >= -most_drop)


def map_to_all(part: Floats, whole: Floats, score: float) -> float:
    """The score on all questions at a score on the part, from models that have both.

    A quadratic through (0, 0) and (1, 1), as the paper's curve is: y = x + q x (1 - x).
    """
    bend = part * (1.0 - part)
    q = float(bend @ (whole - part) / (bend @ bend))
    return float(np.clip(score + q * score * (1.0 - score), 0.0, 1.0))
