"""Languini Kitchen's comparison: loss against accelerator-hours, architecture by architecture, at measured throughput.

Architectures that are worse at every size but faster, or the reverse, trade places at the hours where their curves
cross (`crossing`); equal tokens or equal parameters would hide it.
"""

from __future__ import annotations

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Values
from froude.laws.library._power import Power


class Languini(Power):
    """loss = k h^a, a negative, h accelerator-hours of the compute class."""

    name = "languini"
    source = Source(
        "Stanic et al.",
        2023,
        "The Languini Kitchen: Enabling Language Modelling Research at Different Scales of Compute",
        "arXiv:2309.11197",
        catalogue=416,
    )
    form = "loss = k h^a"
    inputs = ("accelerator_hours",)
    target = "loss"
    unit = "nats"
    scale = (0.5, 20.0)
    exponent = (-0.5, -0.005)


def crossing(first: Values, second: Values) -> float:
    """Hours at which two architectures reach the same loss; infinite when their curves are parallel."""
    if first["a"] == second["a"]:
        return float("inf")
    return float(np.exp(np.log(second["k"] / first["k"]) / (first["a"] - second["a"])))
