"""Numbers given in one word: ``min=1,max=8``."""

from __future__ import annotations

from collections.abc import Mapping

from froude.core.errors import InvalidValueError, UnknownNameError


def parse_knobs(field: str, text: str, defaults: Mapping[str, float]) -> dict[str, float]:
    """``a=1,b=2`` laid over defaults.

    Raises:
        FroudeError: naming an unknown knob, or a value that is no number.
    """
    knobs = dict(defaults)
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        key = key.strip()
        if key not in knobs:
            raise UnknownNameError(field, key, knobs)
        try:
            knobs[key] = float(value)
        except ValueError:
            raise InvalidValueError(f"{field}, {key}", value, "is not a number") from None
    return knobs
