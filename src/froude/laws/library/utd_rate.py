"""Value-based reinforcement learning: the best learning rate falls as a power of updates per datum.

High rates with many updates cost the network its plasticity; all tasks of a suite share the exponent.
"""

from __future__ import annotations

from froude.laws.library._power import Power
from froude.laws.library.utd_data import UtdData


class UtdRate(Power):
    """lr = k sigma^a, a negative."""

    name = "utd-rate"
    source = UtdData.source
    form = "lr = k sigma^a"
    inputs = ("updates_per_datum",)
    target = "learning_rate"
    unit = "1"
    scale = (1e-6, 1e-1)
    exponent = (-1.0, 0.2)
