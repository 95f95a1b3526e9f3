"""The surge of Adam's learning rate: the best rate rises with batch to a peak, then falls, as noise gives way to sign.

For sign-like updates the peak is where the batch equals the noise scale, and it moves to larger batches as loss falls.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class Surge(Law):
    """lr = 2 lr_max / (sqrt(B_peak / B) + sqrt(B / B_peak))."""

    name = "surge"
    source = Source(
        "Li et al.",
        2024,
        "Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling",
        "arXiv:2405.14578",
        catalogue=95,
    )
    form = "lr = 2 lr_max / (sqrt(B_peak / B) + sqrt(B / B_peak))"
    inputs = ("batch",)
    target = "learning_rate"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Two coefficients."""
        return (
            Symbol("lr_max", "1", 1e-5, 1.0, "log", "best learning rate at the peak"),
            Symbol("B_peak", "batch", 1.0, 1e6, "log", "batch at the peak: the noise scale of the loss reached"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Best learning rate of Adam at a batch."""
        ratio = np.sqrt(inputs["batch"] / coefficients["B_peak"])
        return 2.0 * coefficients["lr_max"] / (1.0 / ratio + ratio)
