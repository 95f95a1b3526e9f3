from __future__ import annotations

import pytest

from froude.laws.fitting import fit, objective_at
from froude.laws.library.besiroglu import Besiroglu
from froude.laws.published import published
from froude.laws.table import read_table


@pytest.fixture(scope="module")
def points(law_data):
    return read_table(law_data / "epoch_chinchilla" / "hoffmann_points.csv")


@pytest.mark.parametrize("seed", range(5))
def test_true_minimum_from_any_seed(points, seed: int) -> None:
    found = fit("besiroglu", points, seed=seed)
    assert found.n == 240
    assert found.objective == pytest.approx(0.00101827402, abs=1e-11)
    values = found.fitted.values()
    for name, value in {"A": 477.826, "B": 2143.417, "E": 1.81722, "alpha": 0.34731, "beta": 0.367172}.items():
        assert values[name] == pytest.approx(value, rel=3e-6)
    assert found.law.allocate(5.76e23, values)["params"] == pytest.approx(7.319e10, rel=1e-3)


def test_rounding_raises_the_objective(points) -> None:
    exact = objective_at(Besiroglu(), points, published(Besiroglu, "besiroglu-2024").values())
    assert exact > 0.00101827402
    rounded = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    assert objective_at(Besiroglu(), points, rounded) == pytest.approx(0.004121, rel=1e-3)


def test_all_245_points_move_beta(points) -> None:
    found = fit("hoffmann", points)
    assert found.n == 245
    assert found.coefficients["beta"].value == pytest.approx(0.453049, rel=1e-4)
    assert found.coefficients["B"].value == pytest.approx(12845.6, rel=1e-3)
