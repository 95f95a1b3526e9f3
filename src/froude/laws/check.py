"""Are the laws true? Published figures reproduced from tables of runs, and errors on runs held out.

`check_laws` looks for the public tables by folder and file name; what is absent is listed, not an error.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.laws.fitting import fit
from froude.laws.table import read_table

EXTRAPOLATE, INSIDE = "largest:0.15", "random:0.2"
STARTS, DRAWS, COVER_SEEDS = 80, 100, 3

Rows = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A published figure beside ours."""

    law: str
    quantity: str
    published: float
    ours: float
    difference: float
    within: bool
    source: str


@dataclass(frozen=True)
class HeldOut:
    """Errors of a law on the largest runs, unseen; the cover of its intervals on random unseen runs."""

    table: str
    law: str
    n: int
    median_ape: float
    p90_ape: float
    spearman: float
    coverage_80: float | None


@dataclass(frozen=True)
class Regret:
    """Loss above the best of a cell, for the learning rate and batch that a method chooses there."""

    params: float
    cells: int
    law: float
    copy_nearest: float


@dataclass
class LawCheck:
    """What `check_laws` found."""

    figures: list[Figure] = field(default_factory=list)
    holdout: list[HeldOut] = field(default_factory=list)
    regret: list[Regret] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "rows": [asdict(row) for row in self.figures],
            "within": sum(row.within for row in self.figures),
            "holdout": [asdict(row) for row in self.holdout],
            "regret": [asdict(row) for row in self.regret],
            "skipped": self.skipped,
        }

    def add(self, law: str, quantity: str, ours: float) -> None:
        """A figure, when something is published to compare it with."""
        table = targets()[law]
        if quantity not in table:
            return
        value, tolerance = float(table[quantity]["value"]), float(table[quantity]["tolerance"])
        difference = ours / value - 1.0
        self.figures.append(
            Figure(law, quantity, value, ours, difference, abs(difference) <= tolerance, str(table["source"]))
        )

    def hold_out(self, name: str, law: str, table: Rows, *, cover: bool = True) -> None:
        """Fit without the largest runs and predict them; and without random ones, for the cover of the intervals."""
        outer = fit(law, table, starts=STARTS, holdout=EXTRAPOLATE, where=name).holdout
        covers = [
            found.coverage
            for seed in range(COVER_SEEDS if cover else 0)
            if (found := fit(law, table, starts=STARTS, bootstrap=DRAWS, holdout=INSIDE, seed=seed, where=name).holdout)
        ]
        if outer is not None:
            self.holdout.append(
                HeldOut(
                    name,
                    law,
                    outer.n,
                    outer.median_ape,
                    outer.p90_ape,
                    outer.spearman,
                    float(np.mean(covers)) if covers else None,
                )
            )


@functools.cache
def targets() -> dict[str, dict[str, Any]]:
    """Published figures by law."""
    return tomllib.loads(resources.files(__package__).joinpath("targets.toml").read_text("utf-8"))


def check_laws(directory: str | Path, progress: Callable[[str], None] = lambda _: None) -> LawCheck:
    """Check every law whose table of runs is in ``directory``.

    Raises:
        FroudeError: none of the tables is there.
    """
    from froude.laws import check_tables

    root = Path(directory)
    if not root.is_dir():
        raise FroudeError(f"{directory}: no such directory")
    result = LawCheck()
    done = 0
    for file, check in check_tables.CHECKS:
        if not (root / file).exists():
            result.skipped.append({"table": file, "reason": "not in this directory"})
            continue
        progress(file)
        try:
            check(root / file, result)
        except FroudeError as error:
            result.skipped.append({"table": file, "reason": str(error)})
            continue
        done += 1
    if not done:
        known = ", ".join(file for file, _ in check_tables.CHECKS)
        why = next((s["reason"] for s in result.skipped if "not in" not in s["reason"]), "")
        raise FroudeError(f"{directory}: holds none of the tables that laws are checked on ({known}) {why}".rstrip())
    return result


def load(path: Path, **columns: str) -> Rows:
    """A table as arrays."""
    return {name: np.asarray(column) for name, column in read_table(path, columns).items()}


def where(table: Rows, mask: Floats | Any) -> Rows:
    """Some of the rows."""
    return {name: column[mask] for name, column in table.items()}


def groups(table: Rows, column: str) -> Iterator[tuple[Any, Rows]]:
    """The table by the values of a column."""
    for value in np.unique(table[column]):
        yield value, where(table, table[column] == value)
