"""The rectified fine-tuning law: what a model learned before acts as data already seen, so the curve starts flat.

Loss against fine-tuning set size is constant until the new data outweigh the pre-learned part, then a power law;
without that part (a plain power law) small sets mislead about which model will win.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class FineTuning(Law):
    """L = B / (D_l + D^beta) + E."""

    name = "fine-tuning"
    source = Source(
        "Lin et al.",
        2024,
        "Selecting Large Language Model to Fine-tune via Rectified Scaling Law",
        "arXiv:2402.02314",
        catalogue=61,
    )
    form = "L = B / (D_l + D^beta) + E"
    inputs = ("examples",)
    delta = 1e-2

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("B", "nats", 1.0, 1e5, "log", "size of what fine-tuning can gain"),
            Symbol("D_l", "examples^beta", 1.0, 1e4, "log", "pre-learned data"),
            Symbol("beta", "1", 0.05, 1.2, "log", "exponent of fine-tuning examples"),
            Symbol("E", "nats", 0.001, 2.0, "log", "irreducible loss"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Test loss after fine-tuning."""
        c = coefficients
        return c["B"] / (c["D_l"] + np.exp(c["beta"] * np.log(inputs["examples"]))) + c["E"]
