"""Loss to accuracy on a task: a sigmoid between guessing and a ceiling; and why it often predicts badly.

Accuracy asks whether the right choice beats the wrong ones, whose probabilities loss says nothing about: `score_chain`
follows one set of answers from log-likelihood to accuracy, and scores along it go less and less with compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class LossToAccuracy(Law):
    """accuracy = low + (high - low) / (1 + exp(k (L - L_0)))."""

    name = "loss-to-accuracy"
    source = Source(
        "Schaeffer et al.",
        2024,
        "Why Has Predicting Downstream Capabilities of Frontier AI Models with Scale Remained Elusive?",
        "arXiv:2406.04391",
        catalogue=465,
    )
    form = "accuracy = low + (high - low) / (1 + exp(k (L - L_0)))"
    inputs = ("loss",)
    target = "accuracy"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("low", "1", 0.001, 0.6, "bounded", "accuracy of guessing"),
            Symbol("high", "1", 0.4, 1.0, "bounded", "accuracy at low loss"),
            Symbol("k", "1/nat", 0.2, 20.0, "log", "steepness"),
            Symbol("L_0", "nats", 0.3, 6.0, "log", "loss half way"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Accuracy, 0 to 1."""
        c = coefficients
        return c["low"] + (c["high"] - c["low"]) / (1.0 + np.exp(c["k"] * (inputs["loss"] - c["L_0"])))


def score_chain(log_likelihoods: Floats) -> dict[str, Floats]:
    """Scores of each question in the order in which they lose the correlation with compute.

    Args:
        log_likelihoods: (..., questions, choices), the right choice first.
    """
    best = log_likelihoods.max(axis=-1, keepdims=True)
    shares = np.exp(log_likelihoods - best)
    return {
        "log likelihood": log_likelihoods[..., 0],
        "likelihood": np.exp(log_likelihoods[..., 0]),
        "likelihood among choices": shares[..., 0] / shares.sum(axis=-1),
        "accuracy": (log_likelihoods[..., 0] >= best[..., 0]).astype(float),
    }
