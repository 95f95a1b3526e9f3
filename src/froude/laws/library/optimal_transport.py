"""Projektor: a score on mixed sources is linear in how far the mixture lies from the task, by optimal transport.

Two small sizes of data give two lines; the score at a larger size continues both in the logarithm of the size, without
further parameters (`project`). Samples of a source, not all of it, give its distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class OptimalTransport(Law):
    """score = a_0 - a_1 OT + (b_0 - b_1 OT) ln n."""

    name = "optimal-transport"
    source = Source(
        "Kang et al.",
        2023,
        "Performance Scaling via Optimal Transport: Enabling Data Selection from Partially Revealed Sources",
        "arXiv:2307.02460",
        catalogue=49,
    )
    form = "score = a_0 - a_1 OT + (b_0 - b_1 OT) ln n; OT of the mixture to the task's data"
    inputs = ("distance", "examples")
    target = "score"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("a_0", "1", -1.0, 1.0, "linear", "score at no distance, one example"),
            Symbol("a_1", "1/distance", -0.5, 0.5, "linear", "what distance costs"),
            Symbol("b_0", "1", 0.0, 0.2, "linear", "gain from e times the data"),
            Symbol("b_1", "1/distance", -0.05, 0.05, "linear", "how much of it distance takes"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Score of the trained model."""
        c, far = coefficients, inputs["distance"]
        return c["a_0"] - c["a_1"] * far + (c["b_0"] - c["b_1"] * far) * np.log(inputs["examples"])


def project(score_small: Any, score_large: Any, small: float, large: float, size: float) -> Any:
    """The score at ``size`` examples from predictions at two smaller sizes, straight in the logarithm."""
    if not 0 < small < large:
        raise InvalidValueError("small", small, f"must be positive and below {large:g}")
    share = np.log(size / small) / np.log(large / small)
    return score_small + (score_large - score_small) * share


def transport_distance(first: Floats, second: Floats) -> float:
    """Mean distance between two samples (rows) of equal size, matched as cheaply as can be."""
    from scipy.optimize import linear_sum_assignment

    if first.shape != second.shape:
        raise InvalidValueError("first", first.shape, f"should have the shape of the second sample, {second.shape}")
    cost = np.linalg.norm(first[:, None, :] - second[None, :, :], axis=-1)
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean())
