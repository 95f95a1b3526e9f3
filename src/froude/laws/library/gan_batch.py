"""Steps of two-rate GAN training against batch: they fall to a floor, and samples have a least at the critical batch.

Bounds for constant rates give steps A b / (eps^2 b - B): below B / eps^2 the accuracy is never reached, and twice that
needs the fewest samples. The floor and the critical batch are the coefficients here.
"""

from __future__ import annotations

from typing import Any

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class GanBatch(Law):
    """S = S_min / (1 - b_crit / (2 b))."""

    name = "gan-batch"
    source = Source(
        "Sato and Iiduka",
        2022,
        "Existence and Estimation of Critical Batch Size for Training Generative Adversarial Networks with Two "
        "Time-Scale Update Rule",
        "arXiv:2201.11989",
        catalogue=97,
    )
    form = "S = S_min / (1 - b_crit / (2 b)); S_min = A / eps^2, b_crit = 2 B / eps^2"
    inputs = ("batch",)
    target = "steps"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("S_min", "steps", 10.0, 1e7, "log", "steps at an infinite batch"),
            Symbol("b_crit", "batch", 0.5, 2e3, "log", "batch of the fewest samples"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Steps to the accuracy; negative below half the critical batch, where it is not reached."""
        return coefficients["S_min"] / (1.0 - coefficients["b_crit"] / (2.0 * inputs["batch"]))
