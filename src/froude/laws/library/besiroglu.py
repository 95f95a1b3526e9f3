"""Besiroglu's refit of Hoffmann's approach 3: the same form, fitted to the true minimum on clean points.

Points trained on far fewer tokens than parameters don't follow the form and are left out, as the authors did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.library.hoffmann import Hoffmann

# The authors drop five of Hoffmann's 245 runs: those with the fewest tokens per parameter, 0.04 to 0.40. The next has
# 0.46.
LEAST_TOKENS_PER_PARAM = 0.43


class Besiroglu(Hoffmann):
    """L = E + A / N^alpha + B / D^beta, without runs of fewer than 0.43 tokens per parameter."""

    name = "besiroglu"
    source = Source(
        "Besiroglu et al.",
        2024,
        "Chinchilla Scaling: A replication attempt",
        "arXiv:2404.10102",
    )

    def select(self, table: Mapping[str, Floats]) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], str]:
        """Drop runs far short of data."""
        keep = table["tokens"] / table["params"] >= LEAST_TOKENS_PER_PARAM
        dropped = int((~keep).sum())
        text = f"{dropped} runs with fewer than {LEAST_TOKENS_PER_PARAM} tokens per parameter left out, as in the paper"
        return keep, text if dropped else ""
