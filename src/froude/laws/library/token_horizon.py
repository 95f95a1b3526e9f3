"""Bjorck's horizon law: the best learning rate falls as a power of training tokens, and of parameters.

Found at one batch; where the batch grows with tokens as well (`step-law`), the exponent of tokens turns positive.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library.step_law import StepLaw


class TokenHorizon(StepLaw):
    """lr = c N^a D^b."""

    name = "token-horizon"
    source = Source(
        "Bjorck et al.",
        2024,
        "Scaling Optimal LR Across Token Horizons",
        "arXiv:2409.19913",
        catalogue=87,
    )
