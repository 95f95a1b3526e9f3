"""Kaplan's law in compute alone: the loss of the best model of a budget falls as a power of it, without a floor.

Measured over seven decades and confirmed by GPT-3; with a floor it is `compute-only`.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library._power import Power


class KaplanCompute(Power):
    """L = k C^a, a negative."""

    name = "kaplan-compute"
    source = Source("Kaplan et al.", 2020, "Scaling Laws for Neural Language Models", "arXiv:2001.08361", catalogue=31)
    form = "L = k C^a"
    inputs = ("flops",)
    target = "loss"
    unit = "nats"
    scale = (3.0, 300.0)
    exponent = (-0.2, -0.01)
