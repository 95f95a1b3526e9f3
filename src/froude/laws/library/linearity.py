"""The linearity theorem: quantisation raises loss by a weighted sum of the layers' relative squared errors.

One number per layer, measured by disturbing that layer alone, then predicts every allocation of bits to layers:
`allocate_bits` finds the best by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

PREFIX = "error_"


class Linearity(Law):
    """L = L_0 + sum_l a_l t_l^2."""

    name = "linearity"
    source = Source(
        "Malinovskii et al.",
        2024,
        "Pushing the Limits of Large Language Model Quantization via the Linearity Theorem",
        "arXiv:2411.17525",
        catalogue=142,
    )
    form = "L = L_0 + sum_l a_l t_l^2; the columns error_... hold the squares, |W_quantised - W|^2 / |W|^2"
    delta = LEAST_SQUARES
    residual = "linear"

    def __init__(self, layers: tuple[str, ...] = ("error_1", "error_2")) -> None:
        self.layers = layers

    @classmethod
    def for_table(cls, table: Mapping[str, Any]) -> Linearity:
        """One coefficient per ``error_`` column."""
        layers = tuple(name for name in table if name.startswith(PREFIX))
        if table and not layers:
            raise FroudeError(
                f"{cls.name}: the layers' squared errors are columns whose names start with {PREFIX!r}; the table has "
                f"{', '.join(table)}"
            )
        return cls(layers) if layers else cls()

    def columns(self) -> tuple[str, ...]:
        """The layers' errors."""
        return self.layers

    def positive(self) -> tuple[str, ...]:
        """A layer may be left as it is."""
        return ()

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """The loss without quantisation and one sensitivity per layer."""
        return (
            Symbol("L_0", "nats", 0.1, 10.0, "log", "loss without quantisation"),
            *(
                Symbol(f"a_{name.removeprefix(PREFIX)}", "nats", 1e-3, 1e2, "log", "sensitivity of this layer")
                for name in self.layers
            ),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss, or log perplexity, after quantisation."""
        rise = sum(coefficients[f"a_{name.removeprefix(PREFIX)}"] * np.asarray(inputs[name]) for name in self.layers)
        return coefficients["L_0"] + rise


def allocate_bits(
    sensitivities: Floats, sizes: Sequence[int], bits: Sequence[int], errors: Floats, mean_bits: float
) -> list[int]:
    """Bits per layer of least loss at an average over parameters of at most ``mean_bits``.

    Args:
        sensitivities: a_l of each layer.
        sizes: parameters of each layer, in any common unit; the search grows with their sum.
        bits: widths on offer.
        errors: squared relative error of each width.
        mean_bits: the budget.

    Raises:
        FroudeError: the narrowest width is above the budget.
    """
    budget = int(mean_bits * sum(sizes) + 1e-9)
    if min(bits) * sum(sizes) > budget:
        raise FroudeError(f"mean_bits: {mean_bits:g} is below the narrowest width on offer, {min(bits)}")
    least = np.zeros(budget + 1)
    chosen: list[Floats] = []
    for sensitivity, size in zip(sensitivities, sizes, strict=True):
        options = np.full((len(bits), budget + 1), np.inf)
        for row, (width, error) in enumerate(zip(bits, errors, strict=True)):
            spent = width * size
            if spent > budget:
                continue
            options[row, spent:] = least[: budget + 1 - spent] + sensitivity * error
        chosen.append(np.argmin(options, axis=0))
        least = options.min(axis=0)
    left, picked = budget, []
    for size, choice in zip(reversed(sizes), reversed(chosen), strict=True):
        width = bits[int(choice[left])]
        picked.append(width)
        left -= width * size
    return picked[::-1]
