"""When requests arrive: processes that are laid over the lengths of a trace.

``poisson``; ``constant``, evenly spaced; ``gamma:cv=2``, gaps of that coefficient of variation, burstier than Poisson
above 1; ``diurnal:peak=3,period=86400``, a Poisson process whose rate is a sine wave over the period, ``peak`` times as
high at its highest as at its lowest.
Sources: Agrawal et al. (2024), Vidur, arXiv:2405.05465 (gamma); Lewis and Shedler (1979), Simulation of nonhomogeneous
Poisson processes by thinning, doi:10.1002/nav.3800260304, for the rate that varies (here by inverting its integral).
"""

from __future__ import annotations

import math

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import InvalidValueError, UnknownNameError

_DEFAULTS: dict[str, dict[str, float]] = {
    "poisson": {},
    "constant": {},
    "gamma": {"cv": 2.0},
    "diurnal": {"peak": 3.0, "period": 86400.0},
}


def arrival_times(process: str, count: int, rate: float, seed: int) -> Floats:
    """Times of ``count`` arrivals, ``rate`` per second on average; draws depend on the seed only.

    Raises:
        FroudeError: naming an unknown process or knob, or a value out of range.
    """
    if not (rate > 0 and math.isfinite(rate)):
        raise InvalidValueError("rate", rate, "is not a rate; requests per second must be positive")
    name, _, rest = process.partition(":")
    if name not in _DEFAULTS:
        raise UnknownNameError("arrivals", name, _DEFAULTS)
    knobs = dict(_DEFAULTS[name])
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in knobs:
            raise UnknownNameError(f"arrivals {name}", key, knobs)
        try:
            knobs[key] = float(value)
        except ValueError:
            raise InvalidValueError(f"arrivals {name}, {key}", value, "is not a number") from None
        if not (knobs[key] > 0 and math.isfinite(knobs[key])):
            raise InvalidValueError(f"arrivals {name}, {key}", value, "must be positive")
    rng = np.random.default_rng(seed)
    if name == "constant":
        return np.arange(count) / rate
    if name == "gamma":
        square = knobs["cv"] ** 2
        return np.cumsum(rng.gamma(1.0 / square, square / rate, count))
    gaps = np.cumsum(rng.exponential(1.0 / rate, count))
    return gaps if name == "poisson" else _diurnal(gaps, knobs["peak"], knobs["period"])


def _diurnal(even_s: Floats, peak: float, period_s: float) -> Floats:
    """Arrivals of a steady process moved so that the rate is a wave, lowest at time zero.

    The rate is ``r (1 - a cos(2 pi t / period))`` with ``a = (peak - 1) / (peak + 1)``; its integral over ``r`` is
    inverted on a grid.
    """
    swing = (peak - 1.0) / (peak + 1.0)
    periods = math.ceil(float(even_s[-1]) / period_s) + 1
    grid = np.linspace(0.0, periods * period_s, periods * 4096 + 1)
    passed = grid - swing * period_s / (2.0 * math.pi) * np.sin(2.0 * math.pi * grid / period_s)
    return np.interp(even_s, passed, grid)
