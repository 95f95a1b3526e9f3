"""Scores of predictions against measurements, overall and by source."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from froude.core.estimate import Estimate
from froude.core.measurements import Skipped
from froude.training.choice import Candidate, Choice, choice_alike, choices


@dataclass(frozen=True)
class Scores:
    """Errors of a set of predictions: fractions of the measured value; ``bias`` above 0 predicts too much."""

    n: int
    median_ape: float
    mean_ape: float
    p90_ape: float
    bias: float

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> Scores:
        """Scores of pairs."""
        if not predicted:
            return cls(0, math.nan, math.nan, math.nan, math.nan)
        ratio = np.asarray(predicted, dtype=float) / np.asarray(measured, dtype=float)
        error = np.abs(ratio - 1.0)
        return cls(
            len(ratio),
            float(np.median(error)),
            float(np.mean(error)),
            float(np.quantile(error, 0.9)),
            float(np.exp(np.mean(np.log(ratio))) - 1.0),
        )

    def json(self) -> dict[str, float | int | None]:
        """For ``by_source``; None where there is nothing to average."""
        return {
            "n": self.n,
            **{name: _finite(getattr(self, name)) for name in ("median_ape", "p90_ape", "bias")},
        }


@dataclass(frozen=True)
class Scored:
    """One evaluated row.

    Attributes:
        id, source: of the row.
        predicted, measured: in the same unit.
        assumed: what was assumed for it.
        kind: what kind of run it is ("dense", "experts").
        spread: half-width of the stated 80% interval, as `Estimate.relative` takes it.
        candidate: where it stands among runs that differ in nothing but their layout.
    """

    id: str
    source: str
    predicted: float
    measured: float
    assumed: tuple[str, ...] = ()
    kind: str = ""
    spread: float | None = None
    candidate: Candidate | None = None

    @property
    def covered(self) -> bool | None:
        """Whether the stated interval holds what was measured; None where none was stated."""
        if self.spread is None:
            return None
        stated = Estimate.relative(self.predicted, self.spread)
        return stated.low <= self.measured <= stated.high


MIN_ROWS = 3
"""A source with fewer rows is reported but not averaged."""


@dataclass(frozen=True)
class Check:
    """Predictions against measurements, by source.

    Attributes:
        rows: of the table.
        scored, skipped: what was evaluated and what was not.
        unusable: rows that the table itself marks so; they are among those skipped.
    """

    rows: int
    scored: tuple[Scored, ...]
    skipped: tuple[Skipped, ...]
    unusable: int = 0

    def by_source(self, kind: str | None = None) -> dict[str, Scores]:
        """Scores of each source, in order of appearance; of one kind of run if given."""
        groups: dict[str, list[Scored]] = {}
        for item in self.scored:
            if kind is None or item.kind == kind:
                groups.setdefault(item.source, []).append(item)
        return {source: _scores(items) for source, items in groups.items()}

    def kinds(self) -> list[str]:
        """Kinds of run there are, in order of appearance."""
        return [kind for kind in dict.fromkeys(item.kind for item in self.scored) if kind]

    def overall(self) -> Scores:
        """Scores over the rows of all sources with `MIN_ROWS` rows or more."""
        counted = {source for source, scores in self.by_source().items() if scores.n >= MIN_ROWS}
        return _scores([item for item in self.scored if item.source in counted])

    def sources_alike(self, kind: str | None = None) -> tuple[float, float]:
        """Median and 90th percentile of the error, each averaged over sources of `MIN_ROWS` rows or more."""
        counted = [scores for scores in self.by_source(kind).values() if scores.n >= MIN_ROWS]
        if not counted:
            return math.nan, math.nan
        return (
            float(np.mean([scores.median_ape for scores in counted])),
            float(np.mean([scores.p90_ape for scores in counted])),
        )

    def choices(self) -> list[Choice]:
        """How well the layouts of each sweep are ranked."""
        return choices(self.scored)

    def coverage(self, source: str | None = None, kind: str | None = None) -> float | None:
        """Share of rows whose stated 80% interval holds what was measured; None where none was stated."""
        held = [
            item.covered
            for item in self.scored
            if item.covered is not None and source in (None, item.source) and kind in (None, item.kind)
        ]
        return sum(held) / len(held) if held else None

    def completed(self) -> Scores:
        """Scores of the rows for which something had to be assumed."""
        return _scores([item for item in self.scored if item.assumed])

    def stated(self) -> Scores:
        """Scores of the rows that state everything."""
        return _scores([item for item in self.scored if not item.assumed])

    def json(self) -> dict[str, Any]:
        """What ``froude check ... --json`` prints."""
        overall, ranked = self.overall(), self.choices()
        return {
            "rows": self.rows,
            "usable": self.rows - self.unusable,
            "evaluated": len(self.scored),
            "usable_skipped": len(self.skipped) - self.unusable,
            "skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped],
            **{name: _finite(getattr(overall, name)) for name in ("median_ape", "mean_ape", "p90_ape", "bias")},
            "by_source": {source: scores.json() for source, scores in self.by_source().items()},
            "by_kind": {
                kind: {source: scores.json() for source, scores in self.by_source(kind).items()}
                for kind in self.kinds()
            },
            "completed": self.completed().json(),
            "stated": self.stated().json(),
            "interval_coverage": {
                "all": self.coverage(),
                "by_kind": {kind: self.coverage(kind=kind) for kind in self.kinds()},
                "by_source": {source: self.coverage(source) for source in self.by_source()},
            },
            "choice": [choice.json() for choice in ranked],
            "choice_by_source": {
                source: {"sweeps": count, "regret": regret, "spearman": _finite(correlation)}
                for source, (count, regret, correlation) in choice_alike(ranked).items()
            },
        }


def _scores(items: Iterable[Scored]) -> Scores:
    kept = list(items)
    return Scores.of([item.predicted for item in kept], [item.measured for item in kept])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
