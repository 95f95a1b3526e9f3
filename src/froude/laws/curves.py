"""Curves to look at: loss against size at fixed compute, its minima, and lines of equal loss over size and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from froude.core.arrays import Floats
from froude.laws.allocation import TRAIN_FLOPS, allocate
from froude.laws.fitted import FittedLaw
from froude.laws.law import unpack

HALF_WIDTH, POINTS = 12.0, 61  # of an isoFLOP curve: factors of size around its minimum
SIDE, LEVELS = 121, 11  # of a surface: points along each side, lines of equal loss


def iso_flop(
    law: FittedLaw, budgets: Sequence[float], unique_tokens: float | None = None
) -> tuple[list[Mapping[str, float]], list[Mapping[str, float]]]:
    """Loss against parameters at each budget, and the minima: rows of flops, params, tokens, loss."""
    curves: list[Mapping[str, float]] = []
    minima: list[Mapping[str, float]] = []
    for flops in budgets:
        found = allocate(law, float(flops), unique_tokens=unique_tokens)
        best = float(found.params[0])
        params = best * np.geomspace(1.0 / HALF_WIDTH, HALF_WIDTH, POINTS)
        tokens = flops / TRAIN_FLOPS / params
        loss = _loss(law, params, tokens, unique_tokens)
        curves += [
            {"flops": float(flops), "params": float(n), "tokens": float(d), "loss": float(value)}
            for n, d, value in zip(params, tokens, loss, strict=True)
        ]
        least = float(_loss(law, np.array([best]), np.array([float(found.tokens[0])]), unique_tokens)[0])
        minima.append({"flops": float(flops), "params": best, "tokens": float(found.tokens[0]), "loss": least})
    return curves, minima


def contours(
    law: FittedLaw, params: tuple[float, float], tokens: tuple[float, float], unique_tokens: float | None = None
) -> list[tuple[float, list[Mapping[str, float]]]]:
    """Lines of equal loss over parameters and tokens, highest loss first: the tokens that reach it, for each size.

    Where the most tokens do not reach a loss, the line ends.
    """
    n, d = np.geomspace(*params, SIDE), np.geomspace(*tokens, SIDE)
    loss = np.stack([_loss(law, np.full(SIDE, size), d, unique_tokens) for size in n])
    least = np.minimum.accumulate(loss, axis=1)  # a law in which data can hurt is not read beyond its turn
    levels = np.quantile(loss, np.linspace(1.0, 0.0, LEVELS + 2)[1:-1])
    found: list[tuple[float, list[Mapping[str, float]]]] = []
    for level in levels:
        line: list[Mapping[str, float]] = [
            {"params": float(n[i]), "tokens": float(np.exp(np.interp(-level, -row, np.log(d))))}
            for i, row in enumerate(least)
            if row[-1] <= level
        ]
        found.append((float(level), line))
    return found


def _loss(law: FittedLaw, params: Floats, tokens: Floats, unique_tokens: float | None) -> Floats:
    unique = np.minimum(tokens, unique_tokens or np.inf)
    inputs = {"params": params, "tokens": tokens, "unique_tokens": unique}
    values = unpack(law.law.symbols, law.theta)
    given = {name: inputs[name] for name in law.law.columns()}
    return np.broadcast_to(np.asarray(law.law.predict(given, values), dtype=float), params.shape)
