"""Time series: forecasting loss of decoder-only transformers falls as a power of parameters, as language's does.

No floor, like Kaplan's single-variable laws; data and compute have the same form and their own fits.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.laws.library._power import Power


class TimeSeries(Power):
    """L = k N^a, a negative."""

    name = "time-series"
    source = Source("Edwards et al.", 2024, "Scaling-laws for Large Time-series Models", "arXiv:2405.13867")
    form = "L = k N^a"
    inputs = ("params",)
    target = "forecast_loss"
    unit = "loss"
    scale = (0.1, 1e3)
    exponent = (-0.5, 0.0)
