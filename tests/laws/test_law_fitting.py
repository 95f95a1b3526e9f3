from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from froude.core.errors import FroudeError
from froude.laws.fitted import read_law
from froude.laws.fitting import fit, objective_at
from froude.laws.library.hoffmann import Hoffmann
from froude.laws.objective import held_out_rows

TRUTH = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}


def ladder(rows: int, noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    params, tokens = 10 ** rng.uniform(7, 10, rows), 10 ** rng.uniform(9, 11.5, rows)
    loss = Hoffmann().predict({"params": params, "tokens": tokens}, TRUTH) * np.exp(noise * rng.standard_normal(rows))
    return {"params": params, "tokens": tokens, "loss": loss}


@settings(max_examples=10, deadline=None)
@given(alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6), floor=st.floats(0.5, 2.5), seed=st.integers(0, 10**6))
def test_noiseless_points_give_their_law_back(alpha: float, beta: float, floor: float, seed: int) -> None:
    truth = {"E": floor, "A": 10 ** (9 * alpha) * 0.5, "B": 10 ** (10 * beta) * 0.5, "alpha": alpha, "beta": beta}
    table = ladder(40, 0.0, seed)
    table["loss"] = Hoffmann().predict(table, truth)
    found = fit("hoffmann", table, seed=seed)
    assert found.objective < 1e-10
    for name, value in truth.items():
        assert found.coefficients[name].value == pytest.approx(value, rel=1e-3)


def test_agrees_with_scipy_from_the_same_minimum() -> None:
    table = ladder(60, 0.01)
    found = fit("hoffmann", table)
    law = Hoffmann()

    def objective(theta: np.ndarray) -> float:
        return objective_at(law, table, {s.name: float(s.outside(t)) for s, t in zip(law.symbols, theta, strict=True)})

    start = np.array([s.inside(TRUTH[s.name]) for s in law.symbols])
    oracle = minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 20000})
    assert found.objective <= oracle.fun * (1 + 1e-7)


def test_an_outlier_is_named_and_does_not_move_the_fit() -> None:
    table = ladder(60, 0.003)
    table["loss"][17] *= 1.5
    found = fit("hoffmann", table)
    assert found.outliers[0]["row"] == 18
    assert found.coefficients["alpha"].value == pytest.approx(TRUTH["alpha"], rel=0.1)


def test_intervals_cover_held_out_runs_inside_the_range_and_widen_outside() -> None:
    inside = [fit("hoffmann", ladder(120, 0.01, s), bootstrap=200, holdout="random:0.3", seed=s) for s in range(4)]
    assert 0.72 <= np.mean([f.holdout.coverage for f in inside]) <= 0.90
    near, _ = inside[0].fitted.predict(params=1e9, tokens=1e11)
    far, warnings = inside[0].fitted.predict(params=1e13, tokens=1e15)
    assert (far.high - far.low) / far.value > (near.high - near.low) / near.value
    assert len(warnings) == 2 and "times the data's largest" in warnings[0]


def test_few_points_need_priors() -> None:
    table = {name: column[:4] for name, column in ladder(4, 0.0).items()}
    with pytest.raises(FroudeError, match="4 usable rows are too few for the 5 coefficients of 'hoffmann'"):
        fit("hoffmann", table)
    found = fit("hoffmann", table, priors="published", bootstrap=100)
    assert any("held near prior values" in warning for warning in found.warnings)
    estimate, _ = found.fitted.predict(params=2e10, tokens=4e11)
    truth = float(Hoffmann().predict({"params": 2e10, "tokens": 4e11}, TRUTH))
    assert estimate.value == pytest.approx(truth, rel=0.05)
    assert estimate.low < estimate.value < estimate.high


def test_a_file_keeps_prediction_and_interval(tmp_path) -> None:
    found = fit("hoffmann", ladder(60, 0.01), bootstrap=100).fitted
    found.write(tmp_path / "fit.yaml")
    again = read_law(tmp_path / "fit.yaml")
    assert again.predict(params=1e9, tokens=1e11)[0].json() == pytest.approx(
        found.predict(params=1e9, tokens=1e11)[0].json(), rel=1e-9
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loss": [1.0, -2.0]}, "row 2, loss: -2.0 must be a positive number"),
        ({"params": ["small", "large"]}, "'params' holds text"),
    ],
)
def test_bad_tables_are_one_sentence(change: dict, sentence: str) -> None:
    table = {"params": [1e8, 1e9], "tokens": [1e9, 1e10], "loss": [3.0, 2.0], **change}
    with pytest.raises(FroudeError, match=sentence):
        fit("hoffmann", table)


def test_missing_columns_are_named() -> None:
    with pytest.raises(FroudeError, match="column 'tokens' is missing"):
        fit("hoffmann", {"params": [1e8], "loss": [3.0]})


@pytest.mark.parametrize("rule", ["largest", "largest:2", "colour:0.1", "largest:x"])
def test_bad_holdouts(rule: str) -> None:
    with pytest.raises(FroudeError, match="holdout"):
        held_out_rows({"flops": np.arange(10.0)}, rule)


def test_the_largest_runs_are_those_of_most_compute() -> None:
    mask = held_out_rows({"loss": np.ones(10), "flops": np.arange(10.0)[::-1]}, "largest:0.2")
    assert mask.nonzero()[0].tolist() == [0, 1]
