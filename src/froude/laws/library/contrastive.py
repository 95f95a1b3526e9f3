"""OpenCLIP's laws: zero-shot error of contrastive image-text models is a power of training compute, task by task.

The training distribution sets coefficients and exponent: the same architectures scale better in classification on
OpenAI's data, in retrieval on LAION's.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library._power import Power


class Contrastive(Power):
    """error = k C^a, a negative; C in multiply-adds of all samples seen."""

    name = "contrastive"
    source = Source(
        "Cherti et al.",
        2022,
        "Reproducible scaling laws for contrastive language-image learning",
        "arXiv:2212.07143",
        catalogue=67,
    )
    form = "error = k C^a; C = forward multiply-adds per sample x samples seen, in 1e9"
    inputs = ("gmacs",)
    target = "error"
    unit = "1"
    scale = (0.5, 1e3)
    exponent = (-0.4, -0.02)
