"""Compute-optimal protein language models: size grows far more slowly with compute than data do.

Same form as `isoflop`, other exponents; past some compute the loss of masked models stays on a plateau.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library.isoflop import Isoflop

# N_opt and D_opt as powers of compute. The two do not quite add up to one: they were fitted apart.
SIZE_EXPONENT, TOKEN_EXPONENT = 0.27, 0.71
PLATEAU = 2.4  # nats per residue


class Protein(Isoflop):
    """N* = c C^a through the minima of isoFLOP curves."""

    name = "protein"
    source = Source(
        "Serrano et al.", 2024, "Are Protein Language Models Compute Optimal?", "arXiv:2406.07249", catalogue=274
    )
