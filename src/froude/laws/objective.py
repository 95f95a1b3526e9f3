"""The robust objective of a law on a table: its rows, its minimum from many starts, resamples, rows set aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.laws.law import Law, unpack
from froude.laws.optimise import Problem, Residuals, bfgs, gauss_newton
from froude.laws.table import Table, numbers

SCREEN_DELTA = 0.1  # the first stage's Huber threshold: close to least squares, so that it converges fast from afar
FIRST_LAPS, LAST_LAPS = 20, 60  # of the first stage: all starts, then the better quarter
POLISHED = 24  # rows of the first stage that go on to the second
# Log-noise that a prior is weighed against: seeds move the loss of small language models by about this much.
PRIOR_NOISE = 0.01
FEW_ROWS = 5  # rows per coefficient below which resampling rows would leave degenerate samples


def usable_rows(law: Law, table: Table, where: str) -> tuple[dict[str, Floats], list[str]]:
    """Complete rows that the law is meant for, its columns as floats; and sentences saying what was left out."""
    names = [*law.columns(), law.target]
    positive = [*law.positive(), *([law.target] if law.residual == "log" else [])]
    data, missing = numbers(table, names, positive, where)
    said = [f"{missing} rows with missing values left out"] if missing else []
    keep, why = law.select(data)
    return {name: column[keep] for name, column in data.items()}, [*said, why] if why else said


def residual_function(law: Law, data: Mapping[str, Floats]) -> Residuals:
    """Residuals and their derivatives by the optimiser's coordinates, for many sets of coefficients at once."""
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
        residual_function(law, data),
        data.get("weight", np.ones(rows)) * (1.0 if weights is None else weights),
        law.delta if delta is None else delta,
        prior_mean,
        # A prior competes with points whose pull saturates at delta.
        prior_weight * min(law.delta if delta is None else delta, PRIOR_NOISE) * PRIOR_NOISE,
    )


def minimise(
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


def resample(
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


def predicted_at(law: Law, data: Mapping[str, Floats], theta: Floats) -> Floats:
    """The law at the rows of a table."""
    predicted = law.predict(data, unpack(law.symbols, theta))
    return np.array(np.broadcast_to(np.asarray(predicted, dtype=float), data[law.target].shape))


def residuals_of(law: Law, data: Mapping[str, Floats], predicted: Floats) -> Floats:
    """Observed against predicted: log ratios or differences, as the law counts them."""
    observed = data[law.target]
    return np.asarray(np.log(observed / predicted) if law.residual == "log" else observed - predicted)


def emphasised(data: Mapping[str, Floats], power: float) -> dict[str, Floats]:
    """The data with weights proportional to size to ``power``, of mean one."""
    size = sizes(data)
    weight = data.get("weight", np.ones(len(size))) * (size / size.max()) ** power
    return {**data, "weight": weight / weight.mean()}


def sizes(data: Mapping[str, Any]) -> Floats:
    """By what runs are large or small: compute, where it is known or follows, else the first input."""
    if "flops" not in data and {"params", "tokens"} <= data.keys():
        return np.asarray(np.asarray(data["params"], dtype=float) * np.asarray(data["tokens"], dtype=float))
    name = next((name for name in ("flops", "params", "tokens") if name in data), next(iter(data)))
    return np.asarray(data[name], dtype=float)


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
        key = sizes(data)
    elif kind in data:
        key = np.asarray(data[kind], dtype=float)
    else:
        raise InvalidValueError("holdout", kind, f"is not largest, random or a column ({', '.join(data)})")
    if count >= rows:
        raise InvalidValueError("holdout", rule, f"leaves none of the {rows} rows to fit")
    mask = np.zeros(rows, dtype=bool)
    mask[np.argsort(key, kind="stable")[rows - count :]] = True
    return mask
