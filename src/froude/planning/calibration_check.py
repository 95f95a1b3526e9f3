"""Is a calibration worth it? Learn from two runs of a source, predict the rest of the source; for many pairs of runs.

A step's logarithm is taken as linear in those of the constants: a calibration moves it by a few percent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.core.measurements import Unusable, read_rows
from froude.planning.calibrate import NOISE_ROUNDS, PROBE, free_parameters, noise
from froude.timing.constants import default_constants
from froude.training.many import Steps
from froude.training.runs import COLUMNS, Run, run_of

FEWEST_ROWS = 8
"""Of a source, to be looked at."""
MOST_ROWS = 48
"""Of a source, evenly spaced, that are predicted."""
PAIRS = 100
"""Draws of runs to learn from."""


@dataclass(frozen=True)
class SourceCalibration:
    """What learning from a few runs does for the rest of a source.

    Attributes:
        source, kind: whose.
        n: rows that were predicted.
        before: median error of the rest with the constants that ship; the median over the draws.
        after: the same with what was learned.
        helped: share of the draws after which the rest was predicted better.
    """

    source: str
    kind: str
    n: int
    before: float
    after: float
    helped: float


@dataclass(frozen=True)
class CalibrationCheck:
    """What `check_calibration` found."""

    runs: int
    sources: tuple[SourceCalibration, ...]

    def alike(self, kind: str) -> tuple[float, float]:
        """Median errors before and after, averaged over the sources of a kind."""
        found = [item for item in self.sources if item.kind == kind]
        if not found:
            return math.nan, math.nan
        return float(np.mean([item.before for item in found])), float(np.mean([item.after for item in found]))

    @property
    def kinds(self) -> list[str]:
        """Kinds of run there are."""
        return list(dict.fromkeys(item.kind for item in self.sources))

    def json(self) -> dict[str, Any]:
        """What ``froude check calibrate --json`` prints."""
        return {
            "runs": self.runs,
            "draws": PAIRS,
            "by_kind": {kind: dict(zip(("before", "after"), self.alike(kind), strict=True)) for kind in self.kinds},
            "by_source": [
                {
                    "source": item.source,
                    "kind": item.kind,
                    "n": item.n,
                    "before": item.before,
                    "after": item.after,
                    "helped": item.helped,
                }
                for item in self.sources
            ],
        }


def check_calibration(
    path: str | os.PathLike[str], *, runs: int = 2, on_progress: Callable[[str], None] | None = None
) -> CalibrationCheck:
    """Learn from ``runs`` runs of each source of a table of measured steps, and predict the others of that source.

    Args:
        path: a CSV file as `check_train` reads.
        runs: to learn from.
        on_progress: told the source at hand.

    Raises:
        FroudeError: when the file cannot be read, or no source has rows enough.
    """
    if not 1 <= runs <= FEWEST_ROWS // 2:
        raise InvalidValueError("runs", runs, f"must be between 1 and {FEWEST_ROWS // 2}")
    sources: dict[tuple[str, str], list[tuple[Run, float]]] = {}
    for cells in read_rows(path, (*COLUMNS, "step_s", "use")):
        try:
            run = run_of(cells)
        except Unusable:
            continue
        sources.setdefault((run.source, run.kind), []).append((run, float(cells["step_s"])))
    found = []
    for (source, kind), rows in sources.items():
        if len(rows) < FEWEST_ROWS:
            continue
        if on_progress is not None:
            on_progress(source)
        if len(rows) > MOST_ROWS:
            rows = [rows[i] for i in np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(int)]
        checked = _check_source(source, kind, rows, runs)
        if checked is not None:
            found.append(checked)
    if not found:
        raise FroudeError(f"{path}: no source has {FEWEST_ROWS} usable rows")
    return CalibrationCheck(runs, tuple(found))


def _check_source(source: str, kind: str, rows: Sequence[tuple[Run, float]], runs: int) -> SourceCalibration | None:
    cases = [(run.scenario, run.layout) for run, _ in rows]
    steps, base = Steps(cases), default_constants()
    before_s = steps.seconds(base)
    usable = np.isfinite(before_s)
    if usable.sum() < FEWEST_ROWS:
        return None
    columns = []
    for parameter in free_parameters([scenario for scenario, _ in cases]):
        probe = PROBE if parameter.highest >= PROBE else -PROBE
        moved_s = steps.seconds(base.but({parameter.name: parameter.at(probe)}, "displaced"))
        columns.append(np.asarray(np.log(moved_s / before_s) / probe, dtype=float))
    slopes = np.array(columns).T[usable]
    gap: Floats = np.log(np.array([step_s for _, step_s in rows]) / before_s)[usable]
    draws, before, after = np.random.default_rng(0), [], []
    for _ in range(PAIRS):
        known = draws.choice(len(gap), runs, replace=False)
        rest = np.setdiff1d(np.arange(len(gap)), known)
        moved = slopes @ _learned(slopes[known], gap[known])
        before.append(_median_error(-gap[rest]))
        after.append(_median_error(moved[rest] - gap[rest]))
    helped = float(np.mean(np.less(after, before)))
    return SourceCalibration(source, kind, len(gap), float(np.median(before)), float(np.median(after)), helped)


def _learned(slopes: Floats, gap: Floats) -> Floats:
    """Most plausible displacements, in prior standard deviations, given what a few runs took more than predicted."""
    spread = noise(own_machine=False)
    for _ in range(NOISE_ROUNDS):
        information = spread**2 * np.eye(slopes.shape[1]) + slopes.T @ slopes
        found = np.asarray(np.linalg.solve(information, slopes.T @ gap), dtype=float)
        spread = noise(slopes @ found - gap, own_machine=False)
    return found


def _median_error(log_ratio: Floats) -> float:
    return float(np.median(np.abs(np.exp(log_ratio) - 1.0)))
