"""RegMix: regress the loss of tiny models on their mixtures, and rank mixtures for models a thousand times larger.

The law is the paper's linear regression; `boosted` is its better variant, gradient-boosted trees. What carries over
from small to large is the rank, not the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Symbol, Values
from froude.laws.library.mixing import PREFIX, Mixing
from froude.laws.trees import BoostedTrees


class Regmix(Mixing):
    """L = b + sum_j w_j r_j."""

    name = "regmix"
    source = Source(
        "Liu et al.",
        2024,
        "RegMix: Data Mixture as Regression for Language Model Pre-training",
        "arXiv:2407.01492",
        catalogue=279,
    )
    form = "L = b + sum_j w_j r_j, w of the last domain 0"
    residual = "linear"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """b and one weight per domain but the last: shares add up to one."""
        return (
            Symbol("b", "nats", 0.0, 8.0, "linear", "loss of the last domain alone"),
            *(
                Symbol(f"w_{name.removeprefix(PREFIX)}", "nats", -3.0, 3.0, "linear", "change with this share")
                for name in self.domains[:-1]
            ),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Validation loss of one domain."""
        c = coefficients
        return c["b"] + sum(
            c[f"w_{name.removeprefix(PREFIX)}"] * np.asarray(inputs[name]) for name in self.domains[:-1]
        )

    def gradient(self, inputs: Values, coefficients: Values) -> tuple[Floats, list[Floats]]:
        """Constant."""
        value = np.asarray(self.predict(inputs, coefficients))
        return value, [np.ones_like(value), *(np.asarray(inputs[name])[None, :] for name in self.domains[:-1])]


def boosted(table: Mapping[str, Any], seed: int = 0) -> BoostedTrees:
    """Gradient-boosted trees on the shares; ``predict(shares(other))`` ranks other mixtures."""
    return BoostedTrees(seed=seed).fit(shares(table), np.asarray(table["loss"], dtype=float))


def shares(table: Mapping[str, Any]) -> Floats:
    """The mixture columns as a matrix."""
    return np.stack([np.asarray(table[name], dtype=float) for name in table if name.startswith(PREFIX)], axis=1)
