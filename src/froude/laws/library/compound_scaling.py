"""Dollar's compound scaling of convolutional networks: at equal FLOPs, wider networks grow their activations least.

Activations, not FLOPs, set the time of memory-bound networks. With a share alpha of the growth in width and the rest in
depth and resolution alike, s times the FLOPs give s^(1 - alpha/2) times the activations: the root for width alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

FAST = 0.8  # the paper's share of width


class CompoundScaling(Law):
    """time = k s^(1 - alpha/2)."""

    name = "compound-scaling"
    source = Source("Dollar et al.", 2021, "Fast and Accurate Model Scaling", "arXiv:2103.06877", catalogue=83)
    form = "time = k s^(1 - alpha/2); s times the FLOPs, share alpha of the growth in width"
    inputs = ("flops_ratio", "width_share")
    target = "time_s"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """One coefficient."""
        return (Symbol("k", "s", 1e-5, 10.0, "log", "time of the network that is scaled"),)

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Seconds per batch of a memory-bound network."""
        return coefficients["k"] * np.exp((1.0 - inputs["width_share"] / 2.0) * np.log(inputs["flops_ratio"]))


def scale(flops_ratio: float, width_share: float = FAST) -> dict[str, float]:
    """Factors of width, depth and resolution for s times the FLOPs, depth x width^2 x resolution^2."""
    rest = (1.0 - width_share) / 2.0
    return {
        "width": flops_ratio ** (width_share / 2.0),
        "depth": flops_ratio**rest,
        "resolution": flops_ratio ** (rest / 2.0),
    }
