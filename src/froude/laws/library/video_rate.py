"""Video diffusion transformers: the best learning rate is a product of powers of parameters and tokens.

The form of `step-law`, fitted to grids of rate and batch.
"""

from __future__ import annotations

from froude.laws.library.step_law import StepLaw
from froude.laws.library.video import Video


class VideoRate(StepLaw):
    """lr = c N^a D^b."""

    name = "video-rate"
    source = Video.source
