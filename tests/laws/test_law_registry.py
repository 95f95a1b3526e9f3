"""Every law of the registry: its derivatives are right, and a fit finds the law that made its points."""

from __future__ import annotations

import numpy as np
import pytest

from froude.laws.fitting import fit
from froude.laws.law import LAWS, Law, Symbol

# Decades of plausible inputs, where they are not those of parameters or tokens.
DECADES = {
    "learning_rate": (-4, -2),
    "active_share": (-2, 0),
    "share": (-2, 0),
    "chance": (-1, -0.3),
    "loss": (0, 0.5),
    "experts": (0, 2.5),
    "batch": (1, 4),
    "batch_tokens": (5, 7),
    "steps": (3, 5),
    "min_steps": (3, 5),
    "examples": (2, 6),
    "examples_per_param": (-1, 2),
    "samples": (0, 2),
    "samples_seen": (7, 8.5),
    "pool_samples": (6.7, 7.3),
    "streams": (0, 1),
    "width": (2, 4),
    "dimension": (1, 4),
    "updates_per_datum": (-0.6, 1.2),
    "rate_area": (-1, 2),
    "annealing_area": (-2, -0.5),
    "error_1": (-4, -1),
    "error_2": (-4, -1),
    "gmacs": (10, 13),
    "accelerator_hours": (0, 4),
    "flops_ratio": (0, 2),
    "width_share": (-1, 0),
    "distance": (-1, 1),
    "prompt_tokens": (2, 4),
    "output_tokens": (1, 3),
    "weight_bits": (0.5, 1.2),
    "activation_bits": (0.5, 1.2),
    "cache_bits": (0.5, 1.2),
    "granularity": (0, 1),
    "year": (3.3045, 3.3062),
    "mix_1": (-2, -1),
    "mix_2": (-2, -1),
}


def plausible(symbol: Symbol) -> float:
    """A value a little below the middle of the range where starts are drawn."""
    if symbol.scale == "linear":
        return (symbol.low + symbol.high) / 2.0
    return symbol.low * (symbol.high / symbol.low) ** 0.4


def draw(law: Law, rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {column: 10 ** rng.uniform(*DECADES.get(column, (8, 10)), rows) for column in law.columns()}


@pytest.mark.parametrize("name", LAWS.names())
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    law = LAWS.get(name)()
    values = {symbol.name: np.array([[plausible(symbol)]]) for symbol in law.symbols}
    inputs = draw(law, 7, 1)
    _, partials = law.gradient(inputs, values)
    for symbol, partial in zip(law.symbols, partials, strict=True):
        step = 1e-6 * max(abs(float(values[symbol.name][0, 0])), 1e-3)
        above = law.predict(inputs, {**values, symbol.name: values[symbol.name] + step})
        below = law.predict(inputs, {**values, symbol.name: values[symbol.name] - step})
        slope = (above - below) / (2 * step)
        np.testing.assert_allclose(
            np.broadcast_to(partial, (1, 7)), slope, rtol=2e-3, atol=1e-6 * np.abs(slope).max() + 1e-12
        )


@pytest.mark.parametrize("name", LAWS.names())
def test_a_fit_finds_the_law_that_made_the_points(name: str) -> None:
    law = LAWS.get(name)()
    values = {symbol.name: plausible(symbol) for symbol in law.symbols}
    table = draw(law, 80, 2)
    truth = np.asarray(law.predict(table, values), dtype=float)
    assert np.isfinite(truth).all()
    found = fit(type(law), {**table, law.target: truth}, starts=100)
    made = found.table[law.target]
    np.testing.assert_allclose(found.predicted, made, rtol=2e-3, atol=2e-3 * np.abs(made).max())
