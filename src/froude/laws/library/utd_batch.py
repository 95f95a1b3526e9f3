"""Value-based reinforcement learning: the best batch falls as a power of updates per datum.

More updates on the same data overfit them; smaller batches are the remedy.
"""

from __future__ import annotations

from froude.laws.library._power import Power
from froude.laws.library.utd_data import UtdData


class UtdBatch(Power):
    """B = k sigma^a, a negative."""

    name = "utd-batch"
    source = UtdData.source
    form = "B = k sigma^a"
    inputs = ("updates_per_datum",)
    target = "batch"
    unit = "transitions"
    scale = (8.0, 1e5)
    exponent = (-1.0, 0.2)
