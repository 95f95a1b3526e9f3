"""Fit the timing room's estimated constants on measured training steps, all sources alike; hold whole sources out.

    python benchmarks/fit_timing.py train_measured.csv

Prints the fitted constants (the maintainer copies them to timing/constants.toml) and the errors by source, fitted and
with each source held out in turn, every held-out fit starting from the priors. A step is linear in what its blocks
take: it is evaluated in full once, and the fit moves the blocks.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from froude.core.errors import FroudeError
from froude.core.measurements import Unusable, read_rows
from froude.timing.constants import Constants, default_constants
from froude.timing.roofline import Roofline
from froude.training.build import stage_composition
from froude.training.measured import predicted_step_s
from froude.training.price import price
from froude.training.runs import Run, run_of
from froude.training.scores import MIN_ROWS, Scores
from froude.training.step import price_layouts, structure_of

ROWS_PER_SOURCE = 24
ROUNDS = 3
STEP = 0.03  # of the logarithm, for differences
TOLERANCE = 0.08  # errors beyond this weigh less and less
EVIDENCE = 400.0  # rows that the whole table counts for, against the priors
MOST_STAGES = 40  # longer pipelines take long to evaluate and add no new mechanism


class Row:
    """A measured step, and how its prediction moves with the constants."""

    def __init__(self, run: Run, step_s: float) -> None:
        self.run, self.measured_s = run, step_s
        scenario, layout = run.scenario, run.layout
        (batch,) = price_layouts(scenario, [layout])
        self.work = batch.work
        pieces = structure_of(scenario, batch, 0).pieces
        self.stages = [stage_composition(pieces, i, layout.pipeline_parallel) for i in range(layout.pipeline_parallel)]
        self.micro_batches = scenario.micro_batches(layout)
        start = default_constants()
        self.offset_s = predicted_step_s(scenario, layout) - self.blocks_s(start)

    def blocks_s(self, constants: Constants) -> float:
        """What the blocks of the busiest stage take, and the pipeline's fill."""
        model = Roofline(self.run.cluster, self.run.stack, constants)
        priced = price(self.work, model)
        both = {name: (priced.forward[name] + priced.backward[name]).seconds for name in priced.forward}
        stages = [sum(float(np.ravel(both[name])[0]) * n for name, n in stage.items()) for stage in self.stages]
        fill = (sum(stages) - max(stages)) / self.run.layout.virtual_stages
        return (self.micro_batches * max(stages) + fill) * float(model.straggling(self.run.cluster.nodes))

    def predicted_s(self, constants: Constants) -> float:
        """The step under these constants."""
        return self.offset_s + self.blocks_s(constants)

    def uses(self, name: str) -> bool:
        """Whether a constant can matter to this step."""
        kind, which, *rest = name.split(".")
        stack, generation = self.run.stack, default_constants().generation(self.run.cluster.device.name)
        if kind == "clock":
            return which == generation
        if kind in ("fusion", "host"):
            return which == getattr(stack, kind)
        if kind == "attention":
            return stack.attention in (which, *rest)
        return kind == "kernel" or self.run.layout.tensor_parallel > 1


def load(path: str) -> list[Row]:
    """At most `ROWS_PER_SOURCE` rows of dense models of every source with `MIN_ROWS` or more."""
    by_source: dict[str, list[Row | tuple[Run, float]]] = {}
    for cells in read_rows(path, ("step_s", "use")):
        try:
            run = run_of(cells)
        except Unusable:
            continue
        dense = run.architecture.experts is None
        if dense and run.layout.pipeline_parallel <= MOST_STAGES and run.scenario.objection(run.layout) is None:
            by_source.setdefault(run.source, []).append((run, float(cells["step_s"])))
    random.seed(0)
    rows = []
    for found in by_source.values():
        if len(found) < MIN_ROWS:
            continue
        for run, step_s in random.sample(found, min(len(found), ROWS_PER_SOURCE)):
            try:
                rows.append(Row(run, step_s))
            except FroudeError:
                continue
    return rows


def fit(rows: Sequence[Row], rounds: int = ROUNDS) -> Constants:
    """Robust maximum posterior over the logarithms of the fitted constants, from the priors."""
    base = default_constants()
    priors = base.fitted()
    names = list(priors)
    centre = np.log([priors[name][0] for name in names])
    spread = np.array([priors[name][1] for name in names])
    highest = np.array([0.0 if name.split(".")[0] in ("clock", "link", "exposed") else np.inf for name in names])
    sizes = Counter(row.run.source for row in rows)
    share = np.array([EVIDENCE / len(sizes) / sizes[row.run.source] for row in rows])
    measured = np.log([row.measured_s for row in rows])
    x = centre.copy()

    def at(point: np.ndarray) -> Constants:
        return base.but(dict(zip(names, np.exp(point), strict=True)), "fit")

    for _ in range(rounds):
        here = np.array([row.predicted_s(at(x)) for row in rows])
        slope = np.zeros((len(rows), len(names)))
        for j, name in enumerate(names):
            moved = at(x + STEP * (np.arange(len(names)) == j))
            for i, row in enumerate(rows):
                if row.uses(name):
                    slope[i, j] = (row.predicted_s(moved) / here[i] - 1.0) / STEP
        start, step = x, np.zeros(len(names))
        for _ in range(12):
            error = np.log(here) - measured + slope @ step
            weight = share / TOLERANCE**2 / np.sqrt(1.0 + (error / TOLERANCE) ** 2)
            curvature = slope.T @ (weight[:, None] * slope) + np.diag(spread**-2)
            gradient = slope.T @ (weight * error) + (start + step - centre) / spread**2
            step = np.clip(step - np.linalg.solve(curvature, gradient), -0.7, 0.7)
            step = np.minimum(step, highest - start)
        x = start + step
    return at(x)


def report(title: str, rows: Sequence[Row], constants: Constants) -> Iterator[Scores]:
    """Print and yield errors by source."""
    for source in dict.fromkeys(row.run.source for row in rows):
        members = [row for row in rows if row.run.source == source]
        scores = Scores.of([row.predicted_s(constants) for row in members], [row.measured_s for row in members])
        print(
            f"{title:9s} {source[:46]:46s} {scores.n:4d}  median {scores.median_ape:6.1%}  "
            f"p90 {scores.p90_ape:6.1%}  bias {scores.bias:+6.1%}",
            flush=True,
        )
        yield scores


def main(path: str) -> None:
    """Fit, report, then hold out."""
    rows = load(path)
    fitted = fit(rows)
    for name, (guess, spread) in default_constants().fitted().items():
        print(f"{name:42s} {fitted[name]:.4g}   prior {guess:g} (spread {spread:g})")
    for title, groups in (("fitted", None), ("held out", dict.fromkeys(row.run.source for row in rows))):
        if groups is None:
            scores = list(report(title, rows, fitted))
        else:
            scores = []
            for source in groups:
                constants = fit([row for row in rows if row.run.source != source])
                scores += report(title, [row for row in rows if row.run.source == source], constants)
        print(f"{title}, sources alike: median {np.mean([s.median_ape for s in scores]):.1%}, "
              f"p90 {np.mean([s.p90_ape for s in scores]):.1%}")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/fit_timing.py train_measured.csv")
    main(sys.argv[1])
