"""Fit the timing room's estimated constants on measured training steps, all sources alike; hold whole sources out.

    python benchmarks/fit_timing.py train_measured.csv
    python benchmarks/fit_timing.py train_measured.csv experts

The first fits on dense models what steps of all models share, the second on mixtures of experts what only those use.
Prints the fitted constants (the maintainer copies them to timing/constants.toml) and the errors by source, fitted and
with each source held out in turn, every held-out fit starting from the priors.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Floats
from froude.core.measurements import Unusable, read_rows
from froude.timing.constants import Constants, default_constants
from froude.training.many import Steps
from froude.training.runs import Run, run_of
from froude.training.scores import MIN_ROWS, Scores

ROWS_PER_SOURCE = 40
ROUNDS = 2
STEP = 0.03  # of the logarithm, for differences
TOLERANCE = 0.08  # errors beyond this weigh less and less
EVIDENCE = 400.0  # rows that the whole table counts for, against the priors
LIMITED = ("clock", "gemm", "exposed", "link.exchange_efficiency")  # shares: 1 at most
OF_EXPERTS = ("host.routing_s", "exposed.exchange", "link.exchange_efficiency")  # not used by dense models


@dataclass
class Problem:
    """Measured steps, made ready for pricing, and the constants to find."""

    runs: Sequence[Run]
    measured: Floats
    steps: Steps
    kind: str = "dense"

    def __post_init__(self) -> None:
        self.base = default_constants()
        of_experts = self.kind == "experts"
        priors = {n: p for n, p in self.base.fitted().items() if n.startswith(OF_EXPERTS) == of_experts}
        self.names = list(priors)
        self.centre = np.log([priors[name][0] for name in self.names])
        self.spread = np.array([priors[name][1] for name in self.names])
        limited = [name.startswith(LIMITED) for name in self.names]
        self.highest = np.where(limited, 0.0, np.inf)
        self.sources = np.array([run.source for run in self.runs])

    def at(self, point: Floats) -> Constants:
        """The constants of a point."""
        return self.base.but(dict(zip(self.names, np.exp(point), strict=True)), "fit")

    def errors(self, point: Floats) -> Floats:
        """Logarithms of predicted over measured."""
        return np.log(self.steps.seconds(self.at(point))) - np.log(self.measured)

    def slopes(self, point: Floats) -> Floats:
        """How they move with each constant."""
        here = self.steps.seconds(self.at(point), contention=False)
        columns = []
        for j in range(len(self.names)):
            moved = self.at(point + STEP * (np.arange(len(self.names)) == j))
            columns.append((self.steps.seconds(moved, contention=False) / here - 1.0) / STEP)
        return np.stack(columns, axis=1)

    def improve(self, point: Floats, error: Floats, slope: Floats, kept: Floats) -> Floats:
        """Robust maximum posterior under these slopes; every source that is kept weighs alike."""
        names, sizes = np.unique(self.sources[kept], return_counts=True)
        share = EVIDENCE / len(names) / sizes[np.searchsorted(names, self.sources[kept])]
        error, slope = error[kept], slope[kept]
        step = np.zeros(len(point))
        for _ in range(20):
            left = error + slope @ step
            weight = share / TOLERANCE**2 / np.sqrt(1.0 + (left / TOLERANCE) ** 2)
            curvature = slope.T @ (weight[:, None] * slope) + np.diag(self.spread**-2)
            gradient = slope.T @ (weight * left) + (point + step - self.centre) / self.spread**2
            step = np.clip(step - np.linalg.solve(curvature, gradient), -0.7, 0.7)
            step = np.minimum(step, self.highest - point)
        return point + step

    def fit(self, slopes: Sequence[Floats], kept: Floats, first: Floats) -> Floats:
        """From the priors, one round per table of slopes; ``first`` are the errors at the priors."""
        point, error = self.centre, first
        for round_number, slope in enumerate(slopes):
            if round_number:
                error = self.errors(point)
            point = self.improve(point, error, slope, kept)
        return point

    def report(self, title: str, rows: Floats, error: Floats) -> Iterator[Scores]:
        """Print and yield errors by source."""
        for source in dict.fromkeys(self.sources[rows].tolist()):
            members = rows & (self.sources == source)
            scores = Scores.of(np.exp(error[members]).tolist(), np.ones(int(members.sum())).tolist())
            print(
                f"{title:9s} {source[:46]:46s} {scores.n:4d}  median {scores.median_ape:6.1%}  "
                f"p90 {scores.p90_ape:6.1%}  bias {scores.bias:+6.1%}",
                flush=True,
            )
            yield scores


def load(path: str, kind: str, rows_per_source: int = ROWS_PER_SOURCE) -> Problem:
    """So many rows of models of a kind of every source with `MIN_ROWS` or more."""
    by_source: dict[str, list[tuple[Run, float]]] = {}
    for cells in read_rows(path, ("step_s", "use")):
        try:
            run = run_of(cells)
        except Unusable:
            continue
        if run.kind == kind and run.scenario.objection(run.layout) is None:
            by_source.setdefault(run.source, []).append((run, float(cells["step_s"])))
    random.seed(0)
    chosen = []
    for found in by_source.values():
        if len(found) >= MIN_ROWS:
            chosen += random.sample(found, min(len(found), rows_per_source))
    runs = [run for run, _ in chosen]
    return Problem(runs, np.array([s for _, s in chosen]), Steps([(run.scenario, run.layout) for run in runs]), kind)


def main(path: str, kind: str = "dense") -> None:
    """Fit, report, then hold out."""
    problem = load(path, kind)
    everything = np.ones(len(problem.runs), dtype=bool)
    first = problem.errors(problem.centre)
    list(problem.report("priors", everything, first))
    slopes = [problem.slopes(problem.centre)]
    for _ in range(ROUNDS - 1):
        slopes.append(problem.slopes(problem.fit(slopes, everything, first)))
    point = problem.fit(slopes, everything, first)
    for name, value in zip(problem.names, np.exp(point), strict=True):
        guess, spread = problem.base.fitted()[name]
        print(f"{name:42s} {value:.4g}   prior {guess:g} (spread {spread:g})")
    for title, groups in (("fitted", None), ("held out", dict.fromkeys(problem.sources.tolist()))):
        if groups is None:
            scores = list(problem.report(title, everything, problem.errors(point)))
        else:
            scores = []
            for source in groups:
                out = problem.sources == source
                scores += problem.report(title, out, problem.errors(problem.fit(slopes, ~out, first)))
        print(f"{title}, sources alike: median {np.mean([s.median_ape for s in scores]):.1%}, "
              f"p90 {np.mean([s.p90_ape for s in scores]):.1%}")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["dense"], ["experts"]):
        sys.exit("usage: python benchmarks/fit_timing.py train_measured.csv [experts]")
    main(*sys.argv[1:])
