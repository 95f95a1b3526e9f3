"""Fit any law to a table of runs: many starts, Huber loss, bootstrap intervals, held-out error, outliers, warnings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.core.estimate import Estimate
from froude.laws.fitted import FittedLaw, interval
from froude.laws.law import LAWS, Law, pack, unpack
from froude.laws.optimise import Problem, Residuals, bfgs, gauss_newton
from froude.laws.table import Table, numbers

SCREEN_DELTA = 0.1  # the first stage's Huber threshold: close to least squares, so that it converges fast from afar
FIRST_LAPS, LAST_LAPS = 20, 60  # of the first stage: all starts, then the better quarter
POLISHED = 24  # rows of the first stage that go on to the second
OUTLIER_SIGMAS = 6.0  # beyond this many robust standard deviations a residual is reported
# Log-noise that a prior is weighed against: seeds move the loss of small language models by about this much.
PRIOR_NOISE = 0.01
EMPHASES = (0.0, 0.25, 0.5, 1.0)  # powers of compute that "auto" tries
INNER_HOLDOUT, EMPHASIS_ROWS, EMPHASIS_STARTS = (
    "largest:0.15",
    4,
    60,
)  # how it compares them; least rows per coefficient
FEW_ROWS = 5  # rows per coefficient below which resampling rows would leave degenerate samples


@dataclass(frozen=True)
class Holdout:
    """How a law fitted without some rows predicts them."""

    rule: str
    n: int
    median_ape: float
    p90_ape: float
    spearman: float
    coverage: float
    """Share of the held-out rows inside the 80% interval; NaN without a bootstrap."""

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

    @property
    def law(self) -> Law:
        """The law."""
        return self.fitted.law

    @property
    def n(self) -> int:
        """Rows fitted."""
        return len(self.predicted)

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
        emphasis: weigh runs by compute to this power: extrapolation cares for large runs, and a form's misfit at small
            ones should not count; ``"auto"`` takes the power that best predicts the largest 15% of the rows given.
        seed: of starts, bootstrap and random holdout.
        where: names the table in error messages.

    Raises:
        FroudeError: missing columns, unusable values, or too few rows.
    """
    began = time.perf_counter()
    kind = LAWS.get(law) if isinstance(law, str) else law
    table, prepared = kind.prepare(table)
    chosen = kind.for_table(table) if isinstance(kind, type) else kind
    data, assumptions = _rows(chosen, table, where)
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
    power = _emphasis(chosen, data, emphasis, priors, seed)
    if power > 0:
        data = emphasised(data, power)
        assumptions.append(f"runs weighted by compute to the power {power:g}")
    rng = np.random.default_rng(seed)
    theta, objective, agreeing = _minimise(chosen, data, starts, rng, prior_mean, prior_weight)
    if agreeing < 2 and starts > 1:
        warnings.append("optimiser: only one start reached the lowest objective; the minimum may not be the true one")
    predicted = _predict(chosen, data, theta)
    residuals = _residual(chosen, data, predicted)
    samples = _bootstrap(chosen, data, theta, bootstrap, rng, prior_mean, prior_weight) if bootstrap else theta[None, :]
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
    )


def objective_at(law: Law, table: Table, coefficients: Mapping[str, float]) -> float:
    """The law's Huber objective (sum over rows) at given coefficients."""
    data, _ = _rows(law, table, "table")
    task = problem(law, data, np.zeros(len(law.symbols)), np.zeros(len(law.symbols)))
    return float(task.value_and_gradient(pack(law.symbols, coefficients)[None, :])[0][0])


def _rows(law: Law, table: Table, where: str) -> tuple[dict[str, Floats], list[str]]:
    names = [*law.columns(), law.target]
    positive = [*law.positive(), *([law.target] if law.residual == "log" else [])]
    data, missing = numbers(table, names, positive, where)
    said = [f"{missing} rows with missing values left out"] if missing else []
    keep, why = law.select(data)
    return {name: column[keep] for name, column in data.items()}, [*said, why] if why else said


def _residual_function(law: Law, data: Mapping[str, Floats]) -> Residuals:
    symbols, observed = law.symbols, data[law.target]
    logs = law.residual == "log"
    target = np.log(observed) if logs else observed

    def residuals(theta: Floats) -> tuple[Floats, Floats]:
        values = unpack(symbols, theta)
        predicted, partials = law.gradient(data, values)
        shape = (len(theta), len(observed))
        scale = 1.0 / predicted if logs else 1.0
        slopes = np.empty((len(theta), len(symbols), len(observed)))
        for index, (symbol, partial) in enumerate(zip(symbols, partials, strict=True)):
            slopes[:, index] = partial * (symbol.slope(values[symbol.name]) * scale)
        predicted = np.broadcast_to(predicted, shape)
        return (np.log(predicted) if logs else predicted) - target, slopes

    return residuals


def problem(
    law: Law,
    data: Mapping[str, Floats],
    prior_mean: Floats,
    prior_weight: Floats,
    weights: Floats | None = None,
    delta: float | None = None,
) -> Problem:
    """The robust objective of a law on data, as the optimiser takes it."""
    rows = len(data[law.target])
    return Problem(
        _residual_function(law, data),
        data.get("weight", np.ones(rows)) * (1.0 if weights is None else weights),
        law.delta if delta is None else delta,
        prior_mean,
        # A prior competes with points whose pull saturates at delta.
        prior_weight * min(law.delta if delta is None else delta, PRIOR_NOISE) * PRIOR_NOISE,
    )


def _minimise(
    law: Law,
    data: Mapping[str, Floats],
    starts: int,
    rng: np.random.Generator,
    prior_mean: Floats,
    prior_weight: Floats,
) -> tuple[Floats, float, int]:
    """Best coefficients found, their objective, and how many polished starts agree with it."""
    exact = problem(law, data, prior_mean, prior_weight)
    loose = problem(law, data, prior_mean, prior_weight, delta=max(SCREEN_DELTA, law.delta))
    theta = law.starts(max(starts, 1), rng, data)
    theta = np.where(prior_weight > 0, prior_mean, theta)
    with np.errstate(all="ignore"):
        theta = gauss_newton(loose, theta, iterations=FIRST_LAPS)
        value, _ = loose.value_and_gradient(theta)
        theta = theta[np.argsort(value)[: max(POLISHED, len(theta) // 4)]]
        theta = gauss_newton(loose, theta, iterations=LAST_LAPS)
        value, _ = exact.value_and_gradient(theta)
    if not np.isfinite(value).any():
        raise FroudeError(f"law: no start of {law.name!r} could be evaluated on this table; check its units")
    best = np.argsort(value)[:POLISHED]
    with np.errstate(all="ignore"):
        polished, value = bfgs(exact, theta[best])
    winner = int(np.argmin(value))
    agreeing = int((value <= value[winner] * (1.0 + 1e-6) + 1e-12).sum())
    return polished[winner], float(value[winner]), agreeing


def _bootstrap(
    law: Law,
    data: Mapping[str, Floats],
    theta: Floats,
    count: int,
    rng: np.random.Generator,
    prior_mean: Floats,
    prior_weight: Floats,
) -> Floats:
    """Refit ``count`` resamples of the rows, warm-started from the fit; (count, p).

    With few rows, the Bayesian bootstrap: weights that never vanish, so that no resample loses a size altogether.
    """
    rows, width = len(data[law.target]), len(theta)
    # Bounded memory: residuals and slopes of one batch of resamples stay near 100 MB.
    batch = max(1, min(count, int(1.2e7 / (rows * (len(law.symbols) + 1)))))
    found = []
    for first in range(0, count, batch):
        size = min(batch, count - first)
        if rows < FEW_ROWS * width:
            weights = rows * rng.dirichlet(np.ones(rows), size=size)
        else:
            weights = rng.multinomial(rows, np.full(rows, 1.0 / rows), size=size).astype(float)
        # Resampling the data alone would call what the prior supplied certain.
        spread = np.where(prior_weight > 0, 1.0 / np.sqrt(np.where(prior_weight > 0, prior_weight, 1.0)), 0.0)
        means = prior_mean + spread * rng.standard_normal((size, width))
        start = np.repeat(theta[None, :], size, axis=0)
        with np.errstate(all="ignore"):
            loose = problem(law, data, means, prior_weight, weights, max(10 * law.delta, 1e-2))
            near = gauss_newton(loose, start, iterations=30)
            exact = problem(law, data, means, prior_weight, weights)
            # The smoothed minimum or the full fit, whichever is lower: never start a resample worse than where it was.
            at_near, _ = exact.value_and_gradient(near)
            at_start, _ = exact.value_and_gradient(start)
            near = np.where((at_near < at_start)[:, None], near, start)
            found.append(bfgs(exact, near, iterations=200, tolerance=1e-8)[0])
    return np.concatenate(found)


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


def _predict(law: Law, data: Mapping[str, Floats], theta: Floats) -> Floats:
    predicted = law.predict(data, unpack(law.symbols, theta))
    return np.array(np.broadcast_to(np.asarray(predicted, dtype=float), data[law.target].shape))


def _residual(law: Law, data: Mapping[str, Floats], predicted: Floats) -> Floats:
    observed = data[law.target]
    return np.asarray(np.log(observed / predicted) if law.residual == "log" else observed - predicted)


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
    fitted = fit(
        law,
        kept,
        starts=starts,
        bootstrap=bootstrap,
        priors=priors,
        emphasis=emphasis,
        seed=seed,
        where=f"{where} without held-out rows",
    ).fitted
    observed = test[law.target]
    estimate, low, high = fitted.predict_arrays(test)
    coverage = float(((observed >= low) & (observed <= high)).mean()) if bootstrap else float("nan")
    ape = np.abs(estimate / observed - 1.0)
    return Holdout(
        rule,
        int(out.sum()),
        float(np.median(ape)),
        float(np.quantile(ape, 0.9)),
        spearman(estimate, observed),
        coverage,
    )


def emphasised(data: Mapping[str, Floats], power: float) -> dict[str, Floats]:
    """The data with weights proportional to size to ``power``, of mean one."""
    size = data[_size(data)]
    weight = data.get("weight", np.ones(len(size))) * (size / size.max()) ** power
    return {**data, "weight": weight / weight.mean()}


def _emphasis(
    law: Law,
    data: Mapping[str, Floats],
    emphasis: float | str,
    priors: Mapping[str, tuple[float, float]] | str | None,
    seed: int,
) -> float:
    if not isinstance(emphasis, str):
        if not np.isfinite(emphasis) or emphasis < 0:
            raise InvalidValueError("emphasis", emphasis, "must not be negative")
        return float(emphasis)
    if emphasis != "auto":
        raise InvalidValueError("emphasis", emphasis, "should be a number or 'auto'")
    if len(data[law.target]) < EMPHASIS_ROWS * len(law.symbols):
        return 0.0
    errors = [
        _held_out(law, data, INNER_HOLDOUT, EMPHASIS_STARTS, 0, priors, power, seed, "table").median_ape
        for power in EMPHASES
    ]
    return EMPHASES[int(np.argmin(errors))]


def _size(data: Mapping[str, Any]) -> str:
    return next((name for name in ("flops", "params", "tokens") if name in data), next(iter(data)))


def held_out_rows(data: Table, rule: str, seed: int = 0) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Mask of rows that ``largest:0.15``, ``random:0.15`` or ``COLUMN:0.15`` sets aside.

    Raises:
        InvalidValueError: the rule cannot be read or leaves nothing on one side.
    """
    kind, colon, share = rule.partition(":")
    try:
        fraction = float(share)
    except ValueError:
        fraction = -1.0
    if not colon or not 0.0 < fraction < 1.0:
        raise InvalidValueError("holdout", rule, "should look like largest:0.15")
    rows = len(next(iter(data.values())))
    count = max(1, round(rows * fraction))
    if kind == "random":
        key = np.random.default_rng(seed).permutation(rows).astype(float)
    elif kind == "largest":
        key = np.asarray(data[_size(data)], dtype=float)
    elif kind in data:
        key = np.asarray(data[kind], dtype=float)
    else:
        raise InvalidValueError("holdout", kind, f"is not largest, random or a column ({', '.join(data)})")
    if count >= rows:
        raise InvalidValueError("holdout", rule, f"leaves none of the {rows} rows to fit")
    mask = np.zeros(rows, dtype=bool)
    mask[np.argsort(key, kind="stable")[rows - count :]] = True
    return mask


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation; NaN when either side is constant."""
    from scipy.stats import rankdata

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])
