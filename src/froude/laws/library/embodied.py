"""Compute-optimal agents and world models: language's form, with exponents that tokenizer and task decide.

More tokens per picture make larger models optimal; cloning behaviour from tokens wants data first, from a continuous
embedding of pixels models first.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library.isoflop import Isoflop

# Exponent of compute in the optimal size, by setting.
SIZE_EXPONENTS = {
    "world model, 256 tokens per picture": 0.49,
    "world model, 540 tokens per picture": 0.62,
    "behaviour cloning, tokens": 0.32,
    "behaviour cloning, pixels": 0.66,
}


class Embodied(Isoflop):
    """N* = c C^a through the minima of isoFLOP curves."""

    name = "embodied"
    source = Source(
        "Pearce et al.",
        2024,
        "Scaling Laws for Pre-training Agents and World Models",
        "arXiv:2411.04434",
        catalogue=315,
    )
