"""Coverage of k samples when questions differ in difficulty: chances of success per sample follow a Beta distribution.

Averaged geometric failures become a power of k, the exponent its share of near-hopeless questions; `spend` divides a
budget of samples by difficulty, which is what compute-optimal test-time scaling gains over equal shares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

NODES = 400


class QuestionCoverage(Law):
    """coverage = 1 - mean over p of (1 - p)^k, p ~ Beta(a, b)."""

    name = "question-coverage"
    source = Source(
        "Snell et al.",
        2024,
        "Scaling LLM Test-Time Compute Optimally can be More Effective than Scaling Model Parameters",
        "arXiv:2408.03314",
        catalogue=405,
    )
    form = "coverage = 1 - prod_(i < k) (b + i) / (a + b + i), for chances p ~ Beta(a, b)"
    inputs = ("samples",)
    target = "coverage"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("a", "1", 0.05, 5.0, "log", "exponent of samples in what stays unsolved"),
            Symbol("b", "1", 0.2, 20.0, "log", "weight of hard questions"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Share of questions solved by at least one of k samples."""
        from scipy.special import loggamma

        a, b, k = coefficients["a"], coefficients["b"], inputs["samples"]
        missed = loggamma(b + k) + loggamma(a + b) - loggamma(b) - loggamma(a + b + k)
        return 1.0 - np.exp(missed if np.iscomplexobj(missed) else np.real(missed))


def spend(chances: Floats, samples: int) -> Floats:
    """Samples per question that solve most at a budget in all: each goes where it helps most."""
    given = np.zeros(len(chances), dtype=int)
    gain = np.array(chances, dtype=float)
    for _ in range(samples):
        best = int(np.argmax(gain))
        given[best] += 1
        gain[best] *= 1.0 - chances[best]
    return given


def matched_samples(size_ratio: float, pretraining_tokens: float, inference_tokens: float) -> float:
    """Samples of a small model for the FLOPs of one of a model ``size_ratio`` times larger, training included.

    Training costs 6 N D and inference 2 N D: M + 3 (D_pre / D_inf) (M - 1).
    """
    return size_ratio + 3.0 * pretraining_tokens / inference_tokens * (size_ratio - 1.0)
