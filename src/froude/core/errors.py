"""Errors that a person can act on: one sentence naming the field, the value and the nearest valid choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FroudeError(Exception):
    """Bad input or an impossible request. The message is one clear sentence; commands exit with status 2."""


class InvalidValueError(FroudeError):
    """A field holds a value that cannot be used."""

    def __init__(self, field: str, value: object, why: str) -> None:
        self.field, self.value = field, value
        super().__init__(f"{field}: {value!r} {why}")


class UnknownNameError(FroudeError):
    """A name that is not among the known ones; says which known name is nearest."""

    def __init__(self, field: str, value: object, known: Iterable[str]) -> None:
        self.field, self.value = field, value
        super().__init__(f"{field}: {value!r} is not known; {suggestion(str(value), known)}")


def nearest(value: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like ``value``, or None when there is none to offer."""
    names = list(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.lower(), folded, n=1, cutoff=0.0)
    return folded[close[0]] if close else None


def suggestion(value: str, known: Iterable[str]) -> str:
    """The clause that offers the nearest valid choice, for the end of an error sentence."""
    names = list(known)
    best = nearest(value, names)
    if best is None:
        return "there is nothing to choose from"
    if len(names) <= 6:
        return f"did you mean {best!r}? (one of: {', '.join(names)})"
    return f"did you mean {best!r}?"
