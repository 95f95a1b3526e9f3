"""Scores of predicted against measured serving runs, by metric and by cell of model, device and engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from froude.core.measurements import Skipped


@dataclass(frozen=True)
class Scored:
    """One evaluated row."""

    id: str
    cell: str
    metric: str
    predicted: float
    measured: float
    spread: float  # half-width of its 80% interval, a factor above one


@dataclass(frozen=True)
class Score:
    """Errors as fractions of the measured value; ``bias`` above 0 predicts too much.

    ``coverage`` is the share of rows inside their 80% intervals.
    """

    n: int
    median_ape: float
    p90_ape: float
    bias: float
    coverage: float

    @classmethod
    def of(cls, items: Sequence[Scored]) -> Score:
        """Score of rows, at least one."""
        ratio = np.array([item.predicted / item.measured for item in items])
        error = np.abs(ratio - 1.0)
        bias = float(np.exp(np.mean(np.log(np.maximum(ratio, 1e-9)))) - 1.0)
        far = np.maximum(ratio, 1.0 / np.maximum(ratio, 1e-9)) - 1.0
        held = float(np.mean(far <= np.array([item.spread for item in items])))
        return cls(len(items), float(np.median(error)), float(np.quantile(error, 0.9)), bias, held)

    @classmethod
    def alike(cls, scores: Sequence[Score]) -> Score:
        """Scores of cells, each with the same weight."""
        mean = {
            name: float(np.mean([getattr(s, name) for s in scores]))
            for name in ("median_ape", "p90_ape", "bias", "coverage")
        }
        return cls(sum(score.n for score in scores), **mean)

    def json(self) -> dict[str, float | int]:
        """For ``check serve``."""
        return asdict(self)


@dataclass(frozen=True)
class ServeCheck:
    """Predictions against measurements."""

    rows: int
    scored: tuple[Scored, ...]
    skipped: tuple[Skipped, ...]

    def by_cell(self) -> dict[str, dict[str, Score]]:
        """Cell -> metric -> score, in order of appearance."""
        groups: dict[str, dict[str, list[Scored]]] = {}
        for item in self.scored:
            groups.setdefault(item.cell, {}).setdefault(item.metric, []).append(item)
        return {cell: {m: Score.of(items) for m, items in found.items()} for cell, found in groups.items()}

    def by_metric(self) -> dict[str, Score]:
        """Metric -> score, cells weighted equally."""
        found: dict[str, list[Score]] = {}
        for scores in self.by_cell().values():
            for metric, score in scores.items():
                found.setdefault(metric, []).append(score)
        return {metric: Score.alike(scores) for metric, scores in found.items()}

    def json(self) -> dict[str, Any]:
        """The command's contract."""
        return {
            "rows": self.rows,
            "evaluated": len(self.scored),
            "skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped],
            "by_metric": {metric: score.json() for metric, score in self.by_metric().items()},
            "by_cell": {
                cell: {metric: score.json() for metric, score in scores.items()}
                for cell, scores in self.by_cell().items()
            },
        }
