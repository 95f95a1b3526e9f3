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


LIKENESS = 0.5  # of two names (difflib's ratio) from which one may have been meant by the other
LISTED = 12  # names offered when none is near


def nearest(value: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like ``value``, or None when none is like it."""
    names = list(known)
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(value.lower(), folded, n=1, cutoff=LIKENESS)
    return folded[close[0]] if close else None


def suggestion(value: str, known: Iterable[str]) -> str:
    """The clause that offers the nearest valid choice, or the choices there are, for the end of an error sentence."""
    names = list(known)
    if not names:
        return "there is nothing to choose from"
    best = nearest(value, names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    listed = f"one of: {', '.join(names[:LISTED])}{more}"
    if best is None:
        return f"it should be {listed}"
    return f"did you mean {best!r}?" + (f" ({listed})" if len(names) <= 6 else "")
