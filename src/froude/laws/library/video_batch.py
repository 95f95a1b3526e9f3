"""Video diffusion transformers: the best batch is a product of powers of parameters and tokens.

Parameters count here, where language's best batch (`step-law-batch`) follows tokens alone.
"""

from __future__ import annotations

from froude.laws.law import Symbol
from froude.laws.library.step_law import StepLaw
from froude.laws.library.video import Video


class VideoBatch(StepLaw):
    """B = c N^a D^b, in tokens."""

    name = "video-batch"
    source = Video.source
    form = "B = c N^a D^b"
    target = "batch_tokens"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("c", "tokens", 1e-6, 1e8, "log", "batch at N = D = 1"),
            Symbol("a", "1", -0.5, 1.0, "linear", "exponent of parameters"),
            Symbol("b", "1", -0.5, 1.0, "linear", "exponent of tokens"),
        )
