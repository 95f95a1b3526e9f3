"""muP: with initial values and rates scaled by width, the best learning rate stays where a narrow proxy has it.

In the standard parametrisation the best rate of Adam falls as one over the width, which is what the fit of the form
checks; `transfer` gives the factors per kind of weight.
"""

from __future__ import annotations

from typing import Literal

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.laws.library._power import Power


class Mup(Power):
    """lr = k width^a: a is -1 for hidden weights under Adam, 0 once rates are given in muP."""

    name = "mup"
    source = Source(
        "Yang et al.",
        2022,
        "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
        "arXiv:2203.03466",
    )
    form = "lr = k width^a"
    inputs = ("width",)
    target = "learning_rate"
    unit = "1"
    scale = (1e-4, 1e3)
    exponent = (-1.5, 0.5)


def transfer(width: float, proxy_width: float, kind: Literal["input", "hidden", "output"]) -> dict[str, float]:
    """What a proxy's settings are multiplied by at a larger width, under Adam (table 8 of the paper).

    Returns:
        ``learning_rate``, ``init_deviation`` (of the values drawn at the start) and ``multiplier`` (of the output).
    """
    if width <= 0 or proxy_width <= 0:
        raise InvalidValueError("width", min(width, proxy_width), "must be positive")
    ratio = width / proxy_width
    if kind == "input":
        return {"learning_rate": 1.0, "init_deviation": 1.0, "multiplier": 1.0}
    if kind == "hidden":
        return {"learning_rate": 1.0 / ratio, "init_deviation": ratio**-0.5, "multiplier": 1.0}
    return {"learning_rate": 1.0, "init_deviation": 1.0, "multiplier": 1.0 / ratio}
