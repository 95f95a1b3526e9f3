"""Fit any law to a table of runs: many starts, Huber loss, bootstrap intervals, held-out error, outliers, warnings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.core.estimate import Estimate
from froude.laws.fitted import FittedLaw, interval
from froude.laws.law import LAWS, Law, pack
from froude.laws.objective import (
    emphasised,
    held_out_rows,
    minimise,
    predicted_at,
    problem,
    resample,
    residuals_of,
    usable_rows,
)
from froude.laws.outlook import look_ahead
from froude.laws.table import Table

OUTLIER_SIGMAS = 6.0  # beyond this many robust standard deviations a residual is reported


@dataclass(frozen=True)
class Holdout:
    """How a law fitted without some rows predicts them."""

    rule: str
    n: int
    median_ape: float
    p90_ape: float
    spearman: float
    coverage: float
    """Share of the held-out rows inside the 80% interval; NaN without a bootstrap where rows are few."""

    def json(self) -> dict[str, float | int | str]:
        """Plain data."""
        return {
            "rule": self.rule,
            "n": self.n,
            "median_ape": self.median_ape,
            "p90_ape": self.p90_ape,
            "spearman": self.spearman,
            "coverage_80": self.coverage,
        }


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table."""

    fitted: FittedLaw
    objective: float
    r2: float
    outliers: tuple[dict[str, float], ...]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    holdout: Holdout | None
    fit_s: float
    agreeing_starts: int
    table: Mapping[str, Floats] = field(repr=False)
    predicted: Floats = field(repr=False)
    runs: Mapping[str, Floats] = field(repr=False)
    priors: bool = False
    seed: int = 0

    @property
    def law(self) -> Law:
        """The law."""
        return self.fitted.law

    @property
    def n(self) -> int:
        """Rows fitted."""
        return len(self.predicted)

    def for_prediction(self) -> FittedLaw:
        """The law with its outlook, where the runs are enough for one: takes seconds, so only where it is needed.

        Coefficients held by priors are not what the data alone say; such a law predicts as it is.
        """
        return self.fitted if self.priors else replace(self.fitted, outlook=look_ahead(self.law, self.runs, self.seed))

    @property
    def coefficients(self) -> dict[str, Estimate]:
        """Coefficients with 80% intervals (equal to the value when no bootstrap was asked for)."""
        return self.fitted.estimates()

    def json(self) -> dict[str, Any]:
        """The contract of ``froude fit --json``, without its envelope."""
        return {
            "law": self.law.name,
            "coefficients": {name: value.json() for name, value in self.coefficients.items()},
            "objective": self.objective,
            "r2": self.r2,
            "n": self.n,
            "outliers": list(self.outliers),
            "holdout": self.holdout.json() if self.holdout else None,
            "fit_s": self.fit_s,
        }


def fit(
    law: Law | str,
    table: Table,
    *,
    starts: int = 300,
    bootstrap: int = 0,
    holdout: str | None = None,
    priors: Mapping[str, tuple[float, float]] | str | None = None,
    emphasis: float | str = 0.0,
    seed: int = 0,
    where: str = "table",
) -> Fit:
    """Fit ``law`` to the runs in ``table`` (columns as the law's inputs and target).

    Args:
        law: a law or its name.
        table: columns, as `froude.laws.table.read_table` gives them or plain arrays; a column ``weight``, if there is
            one, multiplies each row's part of the objective.
        starts: random starts; all are optimised.
        bootstrap: resamples for the intervals; 0 for none.
        holdout: ``largest:0.15`` (by compute), ``COLUMN:0.15`` or ``random:0.15``: also fit without those rows and
            report how they are predicted. The coefficients returned are fitted to all rows.
        priors: ``{"alpha": (0.34, 0.05)}``, value and standard deviation (on the logarithm for positive symbols:
            relative); or ``"published"``: the exponents of the law's published coefficients, which allows fitting with
            fewer points than coefficients.
        emphasis: weigh runs by compute to this power when fitting the coefficients: a form's misfit at small runs
            should not count; ``"auto"`` takes the power that best predicts larger rows from smaller ones. Predictions
            (held-out ones too) choose theirs by themselves.
        seed: of starts, bootstrap and random holdout.
        where: names the table in error messages.

    Raises:
        FroudeError: missing columns, unusable values, or too few rows.
    """
    began = time.perf_counter()
    kind = LAWS.get(law) if isinstance(law, str) else law
    table, prepared = kind.prepare(table)
    chosen = kind.for_table(table) if isinstance(kind, type) else kind
    data, assumptions = usable_rows(chosen, table, where)
    assumptions = [prepared, *assumptions] if prepared else assumptions
    warnings: list[str] = []
    prior_mean, prior_weight = _priors(chosen, priors, warnings)
    held = int((prior_weight > 0).sum())
    needed = max(2, len(chosen.symbols) - held) if held else len(chosen.symbols) + 1
    rows = len(data[chosen.target])
    if rows < needed:
        raise FroudeError(
            f"{where}: {rows} usable rows are too few for the {len(chosen.symbols)} coefficients of {chosen.name!r}; "
            f"at least {needed} are needed"
            + ("" if prior_weight.any() else ", or priors on the exponents (--priors published)")
        )
    plain = data
    power = _emphasis(chosen, data, emphasis, seed)
    if power > 0:
        data = emphasised(data, power)
        assumptions.append(f"runs weighted by compute to the power {power:g}")
    rng = np.random.default_rng(seed)
    theta, objective, agreeing = minimise(chosen, data, starts, rng, prior_mean, prior_weight)
    if agreeing < 2 and starts > 1:
        warnings.append("optimiser: only one start reached the lowest objective; the minimum may not be the true one")
    predicted = predicted_at(chosen, data, theta)
    residuals = residuals_of(chosen, data, predicted)
    samples = resample(chosen, data, theta, bootstrap, rng, prior_mean, prior_weight) if bootstrap else theta[None, :]
    fitted = FittedLaw.from_samples(chosen, data, theta, samples, residuals)
    warnings += _at_bounds(chosen, fitted) + (_ill_determined(chosen, fitted) if bootstrap else [])
    return Fit(
        fitted=fitted,
        objective=objective,
        r2=_r2(data[chosen.target], predicted),
        outliers=_outliers(data, residuals),
        warnings=tuple(warnings),
        assumptions=tuple(assumptions),
        holdout=_held_out(chosen, plain, holdout, starts, bootstrap, priors, emphasis, seed, where)
        if holdout
        else None,
        fit_s=time.perf_counter() - began,
        agreeing_starts=agreeing,
        table=data,
        predicted=predicted,
        runs=plain,
        priors=held > 0,
        seed=seed,
    )


def objective_at(law: Law, table: Table, coefficients: Mapping[str, float]) -> float:
    """The law's Huber objective (sum over rows) at given coefficients."""
    data, _ = usable_rows(law, table, "table")
    task = problem(law, data, np.zeros(len(law.symbols)), np.zeros(len(law.symbols)))
    return float(task.value_and_gradient(pack(law.symbols, coefficients)[None, :])[0][0])


def _priors(
    law: Law, priors: Mapping[str, tuple[float, float]] | str | None, warnings: list[str]
) -> tuple[Floats, Floats]:
    """Prior means and inverse variances in the optimiser's coordinates (weight 0: none)."""
    mean, weight = np.zeros(len(law.symbols)), np.zeros(len(law.symbols))
    if priors is None:
        return mean, weight
    if isinstance(priors, str):
        if priors != "published":
            raise InvalidValueError("priors", priors, "should be 'published' or a mapping")
        from froude.laws.published import published_priors

        priors = published_priors(law)
    names = [symbol.name for symbol in law.symbols]
    for name, (value, spread) in priors.items():
        if name not in names:
            raise InvalidValueError("priors", name, f"is not a coefficient of {law.name!r} ({', '.join(names)})")
        index = names.index(name)
        mean[index] = float(law.symbols[index].inside(np.asarray(value)))
        weight[index] = 1.0 / spread**2
    held = ", ".join(f"{name} {value:.3g} +- {spread:.2g}" for name, (value, spread) in priors.items())
    warnings.append(f"held near prior values, because these runs alone do not settle them: {held}")
    return mean, weight


def _r2(observed: Floats, predicted: Floats) -> float:
    spread = float(((observed - observed.mean()) ** 2).sum())
    return 1.0 - float(((observed - predicted) ** 2).sum()) / spread if spread > 0 else float("nan")


def _outliers(data: Mapping[str, Floats], residuals: Floats) -> tuple[dict[str, float], ...]:
    centre = np.median(residuals)
    sigma = 1.4826 * float(np.median(np.abs(residuals - centre)))
    if sigma <= 0:
        return ()
    score = np.abs(residuals - centre) / sigma
    order = np.argsort(-score)
    return tuple(
        {"row": int(data["row"][i]), "residual": float(residuals[i]), "sigmas": float(score[i])}
        for i in order
        if score[i] > OUTLIER_SIGMAS
    )


def _at_bounds(law: Law, fitted: FittedLaw) -> list[str]:
    values = fitted.values()
    return [
        f"{s.name} = {values[s.name]:.3g} is at the edge of the range it is sought in; the data do not settle its term"
        for s in law.symbols
        if s.scale == "bounded" and not 1.01 * s.low < values[s.name] < 0.99 * s.high
    ]


def _ill_determined(law: Law, fitted: FittedLaw) -> list[str]:
    said = []
    for symbol in law.symbols:
        low, high = interval(fitted.draws()[symbol.name])
        if symbol.scale == "log" and low > 0 and high / low > 30.0:
            said.append(
                f"{symbol.name} is ill-determined: its 80% interval spans a factor of {high / low:.3g}; "
                "trust predictions inside the data's range, not the coefficient"
            )
    return said


def _held_out(
    law: Law,
    data: Mapping[str, Floats],
    rule: str,
    starts: int,
    bootstrap: int,
    priors: Mapping[str, tuple[float, float]] | str | None,
    emphasis: float | str,
    seed: int,
    where: str,
) -> Holdout:
    out = held_out_rows(data, rule, seed)
    kept = {name: column[~out] for name, column in data.items() if name != "row"}
    test = {name: column[out] for name, column in data.items()}
    options: dict[str, Any] = {"starts": starts, "priors": priors, "emphasis": emphasis, "seed": seed}
    options["where"] = f"{where} without held-out rows"
    fitted = fit(law, kept, **options).for_prediction()
    if bootstrap and not fitted.outlook:
        # Only coefficients that predict by themselves take their intervals from resamples.
        fitted = fit(law, kept, bootstrap=bootstrap, **options).fitted
    observed = test[law.target]
    estimate, low, high = fitted.predict_arrays(test)
    known = bootstrap or fitted.outlook
    coverage = float(((observed >= low) & (observed <= high)).mean()) if known else float("nan")
    ape = np.abs(estimate / observed - 1.0)
    return Holdout(
        rule,
        int(out.sum()),
        float(np.median(ape)),
        float(np.quantile(ape, 0.9)),
        spearman(estimate, observed),
        coverage,
    )


def _emphasis(law: Law, data: Mapping[str, Floats], emphasis: float | str, seed: int) -> float:
    if not isinstance(emphasis, str):
        if not np.isfinite(emphasis) or emphasis < 0:
            raise InvalidValueError("emphasis", emphasis, "must not be negative")
        return float(emphasis)
    if emphasis != "auto":
        raise InvalidValueError("emphasis", emphasis, "should be a number or 'auto'")
    outlook = look_ahead(law, data, seed)
    return outlook.power if outlook else 0.0


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation; NaN when either side is constant."""
    from scipy.stats import rankdata

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
