"""The loss bowl: how far loss rises above a size and budget's least when learning rate and batch miss their best.

Step Law's observation that the bowl is convex and moves as power laws of size and data, as a law of its own: one fit to
all runs of a grid gives the optimum and what missing it costs. Towards large rates the wall is steeper: runs diverge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.laws.law import Law, Symbol, Values
from froude.laws.library.step_law import StepLaw
from froude.laws.table import numbers

# Centres of the coordinates, so that coefficients are of order one and little correlated.
PARAMS_0, TOKENS_0 = 4e8, 2e10
NEAR = 1.01  # runs worse than this times the best of their cell say little of where the bottom is
LEAST_RUNS = 12  # of a cell, for a quadratic (six coefficients) to say where its bottom lies
LUCK = 0.005  # at most this far is the best run from the bottom of its cell


class LossBowl(Law):
    """excess = exp(f + 2 u^2 (e^(s x) - s x - 1) / s^2 + 2 r u v x y + v^2 y^2)."""

    name = "loss-bowl"
    source = StepLaw.source
    form = "excess = exp(f + 2 u^2 (e^(s x) - s x - 1) / s^2 + 2 r u v x y + v^2 y^2); x = ln lr/lr*, y = ln B/B*"
    inputs = ("params", "tokens", "learning_rate", "batch_tokens")
    target = "excess"
    delta = 2e-3

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Centre and shape."""
        return (
            Symbol("f", "1", -0.001, 0.001, "linear", "bottom of the bowl above that of its cell, in log loss"),
            Symbol("lr_0", "1", 3e-4, 1e-2, "log", "best learning rate at 4e8 parameters and 2e10 tokens"),
            Symbol("lr_N", "1", -1.0, 0.0, "linear", "its exponent in parameters"),
            Symbol("lr_D", "1", -0.5, 0.6, "linear", "its exponent in tokens"),
            Symbol("B_0", "tokens", 1e5, 2e6, "log", "best batch there"),
            Symbol("B_N", "1", -0.5, 0.5, "linear", "its exponent in parameters"),
            Symbol("B_D", "1", 0.0, 1.0, "linear", "its exponent in tokens"),
            Symbol("u", "1", 0.02, 0.2, "log", "steepness in the learning rate"),
            Symbol("s", "1", 0.1, 3.0, "bounded", "how much steeper large rates are"),
            Symbol("v", "1", 0.02, 0.2, "log", "steepness in the batch"),
            Symbol("r", "1", -0.9, 0.2, "linear", "tilt: a larger batch bears a larger rate"),
        )

    @classmethod
    def prepare(cls, table: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Runs of a grid to excess over the bottom of their (params, tokens) cell, those near it only."""
        if cls.target in table:
            return table, ""
        data, _ = numbers(table, ("params", "tokens", "learning_rate", "batch_tokens", "loss"), ("loss",))
        near = data["loss"] <= NEAR * cell_least(data)
        kept = {name: column[near] for name, column in data.items()}
        kept[cls.target] = kept["loss"] / _bottoms(kept)
        return kept, f"{int((~near).sum())} runs more than {NEAR - 1.0:.0%} above the best of their cell left out"

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss over the least of this size and budget."""
        c = coefficients
        rate, batch = self._centre(inputs, c)
        x, y = np.log(inputs["learning_rate"]) - rate, np.log(inputs["batch_tokens"]) - batch
        wall = 2.0 * c["u"] ** 2 * (np.exp(c["s"] * x) - c["s"] * x - 1.0) / c["s"] ** 2
        return np.exp(c["f"] + wall + 2.0 * c["r"] * c["u"] * c["v"] * x * y + c["v"] ** 2 * y * y)

    def best(self, params: Any, tokens: Any, coefficients: Values) -> tuple[Floats, Floats]:
        """Learning rate and batch (tokens) of least loss."""
        rate, batch = self._centre({"params": params, "tokens": tokens}, coefficients)
        return np.exp(rate), np.exp(batch)

    def _centre(self, inputs: Values, c: Values) -> tuple[Any, Any]:
        n, d = np.log(inputs["params"] / PARAMS_0), np.log(inputs["tokens"] / TOKENS_0)
        return np.log(c["lr_0"]) + c["lr_N"] * n + c["lr_D"] * d, np.log(c["B_0"]) + c["B_N"] * n + c["B_D"] * d


def cell_least(data: Mapping[str, Floats]) -> Floats:
    """For each run, the least loss among runs of its params and tokens."""
    cells = np.stack([data["params"], data["tokens"]], axis=1)
    _, index = np.unique(cells, axis=0, return_inverse=True)
    index = index.reshape(-1)
    least = np.full(int(index.max()) + 1, np.inf)
    np.minimum.at(least, index, data["loss"])
    return np.asarray(least[index])


def _bottoms(data: Mapping[str, Floats]) -> Floats:
    """For each run, the bottom of its cell: of a quadratic through its runs, because the best run was also lucky."""
    bottom = cell_least(data)
    cells = np.stack([data["params"], data["tokens"]], axis=1)
    for cell in np.unique(cells, axis=0):
        rows = (cells == cell).all(axis=1)
        if rows.sum() < LEAST_RUNS:
            continue
        x, y = np.log(data["learning_rate"][rows]), np.log(data["batch_tokens"][rows])
        x, y = x - x.mean(), y - y.mean()
        design = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
        c = np.linalg.lstsq(design, np.log(data["loss"][rows]), rcond=None)[0]
        bend = np.array([[2.0 * c[3], c[4]], [c[4], 2.0 * c[5]]])
        if np.linalg.eigvalsh(bend)[0] <= 0:
            continue
        least = np.exp(c[0] - 0.5 * c[1:3] @ np.linalg.solve(bend, c[1:3]))
        bottom[rows] = np.clip(least, bottom[rows] * (1.0 - LUCK), bottom[rows] * (1.0 + LUCK))
    return bottom
