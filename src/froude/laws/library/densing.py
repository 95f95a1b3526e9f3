"""The densing law: effective over actual parameters of the best open models grows exponentially with time.

`density` inverts a reference law of loss: the size at which the reference would reach a model's loss, over the model's
own.
"""

from __future__ import annotations

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Values
from froude.laws.library.trend import Trend


class Densing(Trend):
    """density = a g^(year - 2020)."""

    name = "densing"
    source = Source("Xiao et al.", 2024, "Densing Law of LLMs", "arXiv:2412.04315", catalogue=281)
    form = "density = a g^(year - 2020)"
    target = "density"


def density(loss: float, params: float, tokens: float, reference: Law, coefficients: Values) -> float:
    """Capability density: parameters with which the reference reaches ``loss`` on ``tokens`` tokens, over ``params``.

    Infinite where the reference never does.
    """
    sizes = np.geomspace(1e5, 1e15, 20001)
    losses = np.asarray(reference.predict({"params": sizes, "tokens": np.full_like(sizes, tokens)}, coefficients))
    enough = losses <= loss
    return float(sizes[int(np.argmax(enough))] / params) if enough.any() else float("inf")
