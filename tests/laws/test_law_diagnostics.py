from __future__ import annotations

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.laws.diagnostics import influence, profile
from froude.laws.fitting import fit
from froude.laws.library.hestness import Hestness


def curve(start: float) -> dict[str, np.ndarray]:
    tokens = np.geomspace(start, 1e11, 25)
    rng = np.random.default_rng(0)
    loss = Hestness().predict({"tokens": tokens}, {"a": 3000.0, "b": 0.35, "c": 1.8})
    return {"tokens": tokens, "loss": loss * np.exp(0.003 * rng.standard_normal(25))}


def test_profile_is_least_at_the_fit_and_flatter_with_less_range() -> None:
    rises = []
    for start in (1e8, 2e10):
        found = fit("hestness", curve(start))
        held, objective = profile(found, "b", factor=1.5, points=11)
        assert objective.argmin() == 5 and held[5] == pytest.approx(found.fitted.values()["b"])
        assert objective[5] == pytest.approx(found.objective, rel=1e-3)
        rises.append(min(objective[0], objective[-1]) / objective[5])
    assert rises[0] > 3 * rises[1]


def test_influence_is_what_refitting_without_the_run_gives() -> None:
    table = curve(1e8)
    first, *others = influence(fit("hestness", table))
    assert len(others) == 24 and first["moves"] >= others[0]["moves"] >= others[-1]["moves"]
    without = {name: np.delete(column, first["row"] - 1) for name, column in table.items()}
    again = fit("hestness", without).fitted.values()
    for name, value in first["without"].items():
        assert value == pytest.approx(again[name], rel=1e-3)


def test_unknown_coefficient() -> None:
    with pytest.raises(FroudeError, match="is not known"):
        profile(fit("hestness", curve(1e8)), "beta")
