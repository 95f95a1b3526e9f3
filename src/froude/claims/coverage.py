"""What is true today of every catalogued work: `coverage.toml`, read and counted."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Literal, Self, get_args

from pydantic import model_validator

from froude.core.errors import UnknownNameError
from froude.core.spec import Spec

Status = Literal["executed", "reproduced", "fitted", "modelled", "not-yet", "out"]
STATUSES: tuple[Status, ...] = get_args(Status)
SHOWN: tuple[Status, ...] = STATUSES[:4]
"""Those that a file, a command and a test must back."""


class Work(Spec):
    """One published work and what is true of it here.

    Attributes:
        idx: row of the catalogue.
        system: what it is called.
        status: the first that applies of: executed (really runs here), reproduced (a published figure emerges in
            simulation), fitted (a law, on data), modelled (can be switched on, not yet checked), not-yet, out.
        also: further statuses that apply.
        file: where it is implemented, from the root of the repository.
        command: what shows it.
        test: what fails when it stops being true: a test's file and function.
        reason: why it is out.
        note: what a reader should know, such as what part of the work is meant.
    """

    idx: int
    system: str
    status: Status
    also: tuple[Status, ...] = ()
    file: str | None = None
    command: str | None = None
    test: str | None = None
    reason: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _backed(self) -> Self:
        if self.status in SHOWN and not (self.file and self.command and self.test):
            raise ValueError(f"work {self.idx} is {self.status}, so it needs file, command and test")
        if self.status not in SHOWN and (self.file or self.command or self.test or self.also):
            raise ValueError(f"work {self.idx} is {self.status}, so it has no file, command or test")
        if (self.status == "out") != (self.reason is not None):
            raise ValueError(f"work {self.idx}: a reason goes with status out, and with no other")
        return self


@dataclass(frozen=True)
class Coverage:
    """Counts over all works, and the works that were asked for.

    ``counts`` has each work once, by ``status``; ``also`` counts what else is true of some of them.
    """

    works: tuple[Work, ...]
    counts: dict[Status, int]
    also: dict[Status, int]

    def json(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            **{status.replace("-", "_"): n for status, n in self.counts.items()},
            "also": {status.replace("-", "_"): n for status, n in self.also.items()},
            "rows": [work.model_dump(exclude_defaults=True) for work in self.works],
        }


def coverage(status: str | None = None) -> Coverage:
    """What is true of the catalogued works, or of those with one status.

    Raises:
        FroudeError: for an unknown status, naming the nearest.
    """
    wanted = status.replace("_", "-") if status is not None else None
    if wanted is not None and wanted not in STATUSES:
        raise UnknownNameError("status", status, STATUSES)
    works = all_works()
    chosen = tuple(work for work in works if wanted is None or wanted == work.status or wanted in work.also)
    return Coverage(
        works=chosen,
        counts={each: sum(work.status == each for work in works) for each in STATUSES},
        also={each: sum(each in work.also for work in works) for each in SHOWN},
    )


@lru_cache(maxsize=1)
def all_works() -> Sequence[Work]:
    """The file, row by row."""
    raw = tomllib.loads(resources.files(__package__).joinpath("coverage.toml").read_text("utf-8"))
    return tuple(Work.parse(row, where=f"coverage.toml, work {row.get('idx')}") for row in raw["works"])
