"""What a fit rests on: the profile of a coefficient where the optimum is flat, and the influence of single runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import UnknownNameError
from froude.laws.fitting import Fit
from froude.laws.law import unpack
from froude.laws.objective import problem, residuals_of
from froude.laws.optimise import bfgs

HOLD = 1e8  # prior weight that keeps a coefficient where it is put, against an objective of order one


def profile(found: Fit, name: str, factor: float = 2.0, points: int = 21) -> tuple[Floats, Floats]:
    """The least objective with one coefficient held at values from 1/factor to factor times its own.

    A flat profile is a coefficient that the data do not settle, whatever the bootstrap says.

    Raises:
        UnknownNameError: the law has no such coefficient.
    """
    symbols = found.law.symbols
    names = [symbol.name for symbol in symbols]
    if name not in names:
        raise UnknownNameError(f"coefficient of {found.law.name}", name, names)
    index = names.index(name)
    value = found.fitted.values()[name]
    held = value * np.geomspace(1.0 / factor, factor, points)
    means = np.repeat(found.fitted.theta[None, :], points, axis=0)
    means[:, index] = symbols[index].inside(held)
    weight = np.zeros(len(names))
    weight[index] = HOLD
    task = problem(found.law, found.table, means, weight)
    theta, _ = bfgs(task, means.copy())
    free = problem(found.law, found.table, np.zeros(len(names)), np.zeros(len(names)))
    return held, free.value_and_gradient(theta)[0]


def halved_or_doubled(found: Fit) -> dict[str, dict[str, float]]:
    """For each coefficient, by how much the objective rises (as a share) when it is halved or doubled, others refitted.

    Where neither matters the optimum is flat: the data do not settle the coefficient.
    """
    rises = {}
    for symbol in found.law.symbols:
        if found.fitted.values()[symbol.name] == 0.0:
            continue
        _, objective = profile(found, symbol.name, points=3)
        rise = np.maximum(objective / objective[1] - 1.0, 0.0) if objective[1] > 0 else np.zeros(3)
        rises[symbol.name] = {"halved": float(rise[0]), "doubled": float(rise[2])}
    return rises


def influence(found: Fit, limit: int = 200) -> list[Mapping[str, Any]]:
    """How far leaving out each run (the ``limit`` with the largest residuals) moves the coefficients, largest first."""
    residual = np.abs(residuals_of(found.law, found.table, found.predicted))
    rows = np.argsort(-residual)[:limit]
    count = found.n
    weights = np.ones((len(rows), count))
    weights[np.arange(len(rows)), rows] = 0.0
    nothing = np.zeros(len(found.law.symbols))
    task = problem(found.law, found.table, nothing, nothing, weights)
    theta, _ = bfgs(task, np.repeat(found.fitted.theta[None, :], len(rows), axis=0), tolerance=1e-10)
    moved = np.abs(theta - found.fitted.theta[None, :]).max(axis=1)
    values = {name: value[:, 0] for name, value in unpack(found.law.symbols, theta).items()}
    return [
        {
            "row": int(found.table["row"][rows[i]]),
            "moves": float(moved[i]),
            "without": {name: float(column[i]) for name, column in values.items()},
        }
        for i in np.argsort(-moved)
    ]
