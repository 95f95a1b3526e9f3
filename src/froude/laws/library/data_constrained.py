"""Muennighoff's data-constrained law: repeated tokens and excess parameters count for less and less.

Tokens beyond the first epoch are worth an exponentially decaying share of fresh ones (R_D* epochs' worth at most), and
parameters beyond those that the unique data deserve likewise; with one epoch it is Hoffmann's law.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class DataConstrained(Law):
    """L = E + A / N'^alpha + B / D'^beta with D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), N' alike."""

    name = "data-constrained"
    source = Source(
        "Muennighoff et al.", 2023, "Scaling Data-Constrained Language Models", "arXiv:2305.16264", catalogue=84
    )
    form = "L = E + A / N'^alpha + B / D'^beta; D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), N' alike from N_opt(U)"
    inputs = ("params", "tokens", "unique_tokens")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Hoffmann's five and two decay constants."""
        return (
            Symbol("E", "nats", 0.5, 3.0, "log", "irreducible loss"),
            Symbol("A", "nats", 10.0, 1e5, "log", "size of the parameter term at N = 1"),
            Symbol("B", "nats", 10.0, 1e6, "log", "size of the token term at D = 1"),
            Symbol("alpha", "1", 0.15, 0.6, "log", "exponent of parameters"),
            Symbol("beta", "1", 0.15, 0.6, "log", "exponent of tokens"),
            Symbol("R_D", "epochs", 0.5, 200.0, "bounded", "epochs after which repetition has lost most of its worth"),
            Symbol("R_N", "1", 0.5, 200.0, "bounded", "same for parameters beyond what unique tokens deserve"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss in nats per token."""
        c = coefficients
        unique = np.minimum(inputs["unique_tokens"], inputs["tokens"])
        data = effective(inputs["tokens"], unique, c["R_D"])
        fit_params = np.minimum(inputs["params"], params_for_tokens(unique, c))
        params = effective(inputs["params"], fit_params, c["R_N"])
        return c["E"] + c["A"] * np.exp(-c["alpha"] * np.log(params)) + c["B"] * np.exp(-c["beta"] * np.log(data))


def effective(amount: Any, base: Any, decay: Any) -> Any:
    """What ``amount`` is worth when all beyond ``base`` decays with constant ``decay`` (in multiples of base)."""
    return base + base * decay * (1.0 - np.exp(-(amount / base - 1.0) / decay))


def params_for_tokens(tokens: Any, c: Values) -> Any:
    """The model for which ``tokens`` are compute-optimal under the one-epoch law."""
    ratio = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1.0 / (c["alpha"] + c["beta"]))
    return ratio * (tokens * ratio) ** (c["beta"] / c["alpha"])
