"""Learn a cluster's few free constants from its own runs, and say how much better runs left out are then predicted.

Maximum posterior over the logarithms of a few constants, Gauss-Newton with full predictions in every round; runs are
left out one at a time (Stone 1974, "Cross-validatory choice and assessment of statistical predictions").
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from froude.core.arrays import Floats
from froude.core.measurements import Skipped
from froude.planning.run_logs import Observed, read_runs
from froude.timing.constants import default_constants
from froude.training.calibration import Calibration
from froude.training.measured import predicted_step_s
from froude.training.plan import TrainPlan
from froude.training.scenario import Scenario
from froude.training.scores import Scores

_ANOTHER_PLAN = 1.5
"""From this factor between what was learned and what was measured, it is likelier that something else ran."""

ROUNDS = 4
FARTHEST = 4.0
"""Prior standard deviations that a constant may move."""
PROBE = 0.25
"""Displacement for differences, in prior standard deviations."""
SMALL = 0.02
"""A step by less, in prior standard deviations, ends the fit."""
LEAST_EFFECT = 1e-3
"""A constant that moves no run by more per standard deviation is left alone."""
NOISE_ROUNDS = 5
"""Fits, each with the scatter that the one before has left."""
MOST_RUNS = 40


@dataclass(frozen=True)
class Parameter:
    """A constant that is learned.

    Attributes:
        name: of the constant, or of a profile's speed.
        meaning: in words.
        before: its value in the catalogue.
        spread: standard deviation of its logarithm, from cluster to cluster.
        most: largest possible value.
        profile: it is a measured machine's speed.
    """

    name: str
    meaning: str
    before: float
    spread: float
    most: float = math.inf
    profile: bool = False

    def at(self, displacement: float) -> float:
        """Its value so many standard deviations from what it was; as many digits as are worth keeping."""
        return float(f"{self.before * math.exp(self.spread * displacement):.6g}")

    @property
    def highest(self) -> float:
        """Largest displacement, in standard deviations."""
        return min(FARTHEST, math.log(self.most / self.before) / self.spread) if self.most < math.inf else FARTHEST


@dataclass(frozen=True)
class Learned:
    """A constant after the fit: its value, and the standard deviation of its logarithm given the runs."""

    parameter: Parameter
    value: float
    spread: float


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` found.

    Attributes:
        calibration: the constants, to be written and used.
        learned: each of them with its uncertainty.
        runs: what it was learned from.
        before_s, fitted_s: predicted with the catalogue's constants, and with those learned.
        held_out_s: each run predicted with constants learned from the others; None for a single run.
        skipped: what could not be used, and why.
        thinned_from: runs given, where only some were used.
    """

    calibration: Calibration
    learned: tuple[Learned, ...]
    runs: tuple[Observed, ...]
    before_s: Floats
    fitted_s: Floats
    held_out_s: Floats | None
    skipped: tuple[Skipped, ...]
    thinned_from: int

    @property
    def before(self) -> Scores:
        """Errors with the catalogue's constants."""
        return self._scores(self.before_s)

    @property
    def held_out(self) -> Scores | None:
        """Errors of runs left out."""
        return None if self.held_out_s is None else self._scores(self.held_out_s)

    @property
    def helps(self) -> bool | None:
        """Whether runs left out are predicted better than before, on average; None when none can be left out."""
        held_out = self.held_out
        return None if held_out is None else held_out.mean_ape < self.before.mean_ape

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before using it."""
        said = []
        if self.helps is None:
            said.append("one run only: nothing can be left out, so nothing is known of how well this predicts others")
        elif not self.helps:
            said.append("this calibration does not predict runs left out better than the constants that ship: leave it")
        gaps = self.fitted_s / np.array([run.step_s for run in self.runs])
        worst = int(np.abs(np.log(gaps)).argmax())
        if max(gaps[worst], 1.0 / gaps[worst]) > _ANOTHER_PLAN:
            said.append(
                f"{self.runs[worst].name} is predicted at {gaps[worst]:.2g} times its step even with what was learned: "
                "is the plan what ran?"
            )
        if not self.learned:
            said.append("no constant that is learned matters to these runs")
        if self.thinned_from > len(self.runs):
            said.append(f"{len(self.runs)} of {self.thinned_from} runs were used, evenly spaced")
        return tuple(said)

    def json(self) -> dict[str, Any]:
        """What ``froude calibrate --json`` prints."""
        held_out = self.held_out
        held = [None] * len(self.runs) if self.held_out_s is None else self.held_out_s.tolist()
        return {
            "constants": {
                item.parameter.name: {
                    "value": item.value,
                    "low": item.value * math.exp(-1.2816 * item.spread),
                    "high": item.value * math.exp(1.2816 * item.spread),
                    "before": item.parameter.before,
                    "meaning": item.parameter.meaning,
                }
                for item in self.learned
            },
            "before": self.before.json(),
            "fitted": self._scores(self.fitted_s).json(),
            "held_out": None if held_out is None else held_out.json(),
            "helps": self.helps,
            "runs": [
                {"name": run.name, "measured_s": run.step_s, "before_s": b, "fitted_s": f, "held_out_s": h}
                for run, b, f, h in zip(self.runs, self.before_s, self.fitted_s, held, strict=True)
            ],
            "skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped],
        }

    def _scores(self, predicted_s: Floats) -> Scores:
        return Scores.of(predicted_s.tolist(), [run.step_s for run in self.runs])


def calibrate(
    logs: Sequence[str | os.PathLike[str]],
    *,
    plans: Sequence[TrainPlan] = (),
    out: str | os.PathLike[str] | None = None,
    kernels: str = "fitted",
) -> Calibrated:
    """Learn a cluster's constants from runs.

    Args:
        logs: run directories, CSV files, logs; see `froude.planning.run_logs.read_runs`.
        plans: what ran, for logs that do not say.
        out: where to write the constants, for ``--constants``.
        kernels: "fitted", or "measured" for the tables of the extra ``kernels`` beneath the constants that are learned.

    Raises:
        FroudeError: for what cannot be read.
    """
    runs, skipped = read_runs(logs, plans)
    if kernels != "fitted":
        runs = [replace(run, scenario=run.scenario.with_kernels(kernels)) for run in runs]
    given = len(runs)
    if given > MOST_RUNS:
        runs = [runs[i] for i in np.linspace(0, given - 1, MOST_RUNS).round().astype(int)]
    found = learn(runs)
    result = Calibrated(
        found.calibration,
        found.learned,
        found.runs,
        found.before_s,
        found.fitted_s,
        found.held_out_s,
        tuple(skipped),
        given,
    )
    if out is not None:
        result.calibration.write(out)
    return result


def learn(runs: Sequence[Observed]) -> Calibrated:
    """Fit, and leave each run out in turn."""
    parameters = free_parameters(run.scenario for run in runs)
    fit = _Fit(runs, parameters)
    before = fit.log_steps(np.zeros(len(parameters)))
    parameters = fit.keep_those_that_matter(before)
    point, log_fitted, slopes, spread = fit.solve(before)
    held_out = None
    if len(runs) > 1:
        held_out = np.empty(len(runs))
        for i in range(len(runs)):
            others = np.arange(len(runs)) != i
            without = fit.linear(point, log_fitted[others], slopes[others], fit.measured[others], spread)
            held_out[i] = math.exp(fit.log_step(runs[i], without))
    information = np.eye(len(parameters)) + slopes.T @ slopes / spread**2
    spreads = np.sqrt(np.diag(np.linalg.inv(information)))
    learned = tuple(Learned(p, p.at(z), p.spread * s) for p, z, s in zip(parameters, point, spreads, strict=True))
    return Calibrated(
        fit.calibration(point), learned, tuple(runs), np.exp(before), np.exp(log_fitted), held_out, (), len(runs)
    )


class _Fit:
    """Logarithms of steps as functions of displacements (in prior standard deviations)."""

    def __init__(self, runs: Sequence[Observed], parameters: Sequence[Parameter]) -> None:
        self.runs, self.parameters = runs, list(parameters)
        self.measured = np.log([run.step_s for run in runs])

    def calibration(self, point: Floats) -> Calibration:
        """The constants at a point."""
        values = {p: p.at(z) for p, z in zip(self.parameters, point, strict=True)}
        return Calibration.parse(
            {
                "constants": {p.name: v for p, v in values.items() if not p.profile},
                "profile": {p.name: v for p, v in values.items() if p.profile},
                "source": f"froude calibrate, {len(self.runs)} runs",
            }
        )

    def log_step(self, run: Observed, point: Floats) -> float:
        """One run's step."""
        return math.log(predicted_step_s(self.calibration(point).apply(run.scenario), run.layout))

    def log_steps(self, point: Floats) -> Floats:
        """All runs' steps."""
        return np.array([self.log_step(run, point) for run in self.runs])

    def slopes(self, point: Floats, here: Floats) -> Floats:
        """Derivatives of all steps."""
        columns = []
        for j, parameter in enumerate(self.parameters):
            probe = PROBE if point[j] + PROBE <= parameter.highest else -PROBE
            moved = point.copy()
            moved[j] += probe
            columns.append((self.log_steps(moved) - here) / probe)
        return np.array(columns).T.reshape(len(self.runs), len(self.parameters))

    def keep_those_that_matter(self, before: Floats) -> list[Parameter]:
        """Drop parameters that move no run."""
        slopes = self.slopes(np.zeros(len(self.parameters)), before)
        matters = np.abs(slopes).max(axis=0, initial=0.0) >= LEAST_EFFECT
        self.parameters = [p for p, yes in zip(self.parameters, matters, strict=True) if yes]
        return self.parameters

    def solve(self, before: Floats) -> tuple[Floats, Floats, Floats, float]:
        """The most plausible point, the steps and their slopes there, and the scatter that remains."""
        point, here = np.zeros(len(self.parameters)), before
        slopes = self.slopes(point, here)
        own_machine = any(run.scenario.own_machine for run in self.runs)
        spread = noise(own_machine=own_machine)
        # What the constants cannot explain is scatter, or a few runs would pull them too far.
        for _ in range(NOISE_ROUNDS):
            point, here, slopes = self._descend(point, here, slopes, spread)
            spread, last = noise(here - self.measured, own_machine=own_machine), spread
            if abs(spread - last) < SMALL * last:
                break
        return point, here, slopes, spread

    def _descend(self, point: Floats, here: Floats, slopes: Floats, noise: float) -> tuple[Floats, Floats, Floats]:
        """Gauss-Newton from a point, with shorter steps where a whole one leads uphill."""
        for _ in range(ROUNDS if self.parameters else 0):
            step = self.linear(point, here, slopes, self.measured, noise) - point
            cost = self._cost(point, here, noise)
            for share in (1.0, 0.5, 0.25):
                there = self.log_steps(point + share * step)
                if self._cost(point + share * step, there, noise) < cost:
                    break
            else:
                break
            point, here = point + share * step, there
            slopes = self.slopes(point, here)
            if np.abs(step).max() < SMALL:
                break
        return point, here, slopes

    def linear(self, point: Floats, here: Floats, slopes: Floats, measured: Floats, noise: float) -> Floats:
        """Maximum posterior with steps linear around a point."""
        if not self.parameters:
            return point

        def residuals(x: Floats) -> Floats:
            return np.concatenate([(here + slopes @ (x - point) - measured) / noise, x])

        highest = np.array([p.highest for p in self.parameters])
        start = np.clip(point, -FARTHEST + 1e-6, highest - 1e-6)
        found: Floats = least_squares(residuals, start, bounds=(-FARTHEST, highest)).x
        return found

    def _cost(self, point: Floats, here: Floats, noise: float) -> float:
        return float((((here - self.measured) / noise) ** 2).sum() + (point**2).sum())


def free_parameters(scenarios: Iterable[Scenario]) -> list[Parameter]:
    """What may be learned from runs of these scenarios."""
    table, base = _table(), default_constants()
    found: dict[str, Parameter] = {}
    for scenario in scenarios:
        if scenario.own_machine:
            for entry in table["profile"]:
                found[entry["name"]] = Parameter(entry["name"], entry["meaning"], 1.0, entry["spread"], profile=True)
            continue
        for entry in table["constant"]:
            generation = base.generation(scenario.cluster.device.name)
            name = entry["name"].format(generation=generation, host=scenario.stack.host)
            most = entry.get("most", math.inf)
            found[name] = Parameter(name, entry["meaning"], base[name], entry["spread"], most)
    return list(found.values())


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("calibration.toml").read_text("utf-8"))


def noise(residuals: Floats | None = None, *, own_machine: bool) -> float:
    """Standard deviation of the logarithm of a step that these constants cannot explain.

    Args:
        residuals: of runs after a fit. Usual scatter counts as much as `weight` runs beside them: the mean of a scaled
            inverse chi-squared (Gelman et al., "Bayesian Data Analysis", section 2.6).
        own_machine: a computer measured with `froude measure device`.
    """
    usual = float(_table()["noise"]["profile" if own_machine else "cluster"]["value"])
    if residuals is None:
        return usual
    weight = float(_table()["noise"]["weight"]["value"])
    return math.sqrt((weight * usual**2 + float((residuals**2).sum())) / (weight + len(residuals)))
