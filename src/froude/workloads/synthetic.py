"""Named synthetic workloads: length distributions without a file.

``constant:in=1024,out=256`` gives every request the same lengths; ``lognormal:in=1000,out=200,cv=1.0`` draws both from
log-normal distributions of those means and that coefficient of variation. Draws depend on the seed and the request's
number only.
"""

from __future__ import annotations

import math

import numpy as np

from froude.core.errors import InvalidValueError, UnknownNameError
from froude.workloads.trace import Ints, Trace, make_trace

NAMES = ("constant", "lognormal")
_KNOBS = {"constant": ("in", "out", "n"), "lognormal": ("in", "out", "cv", "n")}
_DEFAULTS = {"in": 1024.0, "out": 256.0, "cv": 1.0, "n": 1000.0}


def is_synthetic(text: str) -> bool:
    """Whether that names a synthetic workload rather than a file."""
    return text.partition(":")[0].lower() in NAMES


def synthetic_trace(text: str, seed: int = 0, requests: int | None = None) -> Trace:
    """The workload of that name; requests all ready at time zero until a rate is laid over them.

    Raises:
        FroudeError: naming an unknown knob or a value out of range.
    """
    name, _, rest = text.partition(":")
    name = name.lower()
    if name not in NAMES:
        raise UnknownNameError("trace", text, NAMES)
    knobs = dict(_DEFAULTS)
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key.strip() not in _KNOBS[name]:
            raise UnknownNameError(f"trace {name}", key.strip(), _KNOBS[name])
        try:
            knobs[key.strip()] = float(value)
        except ValueError:
            raise InvalidValueError(f"trace {name}, {key.strip()}", value, "is not a number") from None
    for key in _KNOBS[name]:
        if not (knobs[key] > 0 and math.isfinite(knobs[key])):
            raise InvalidValueError(f"trace {name}, {key}", knobs[key], "must be positive")
    count = int(knobs["n"]) if requests is None else requests
    if count < 1:
        raise InvalidValueError("requests", count, "is not a number of requests; the least is 1")
    rng = np.random.default_rng(seed)
    if name == "constant":
        inputs, outputs = (np.full(count, max(1, round(knobs[key])), dtype=np.int64) for key in ("in", "out"))
    else:
        inputs, outputs = (_lognormal(rng, count, knobs[key], knobs["cv"]) for key in ("in", "out"))
    return make_trace(text, np.zeros(count), inputs, outputs, source="synthetic")


def _lognormal(rng: np.random.Generator, count: int, mean: float, cv: float) -> Ints:
    variance = math.log1p(cv * cv)
    draws = rng.lognormal(math.log(mean) - variance / 2.0, math.sqrt(variance), count)
    return np.maximum(1, np.rint(draws)).astype(np.int64)
