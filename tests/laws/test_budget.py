from __future__ import annotations

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.laws.allocation import allocate, least_flops
from froude.laws.api import load
from froude.planning.budget import plan_budget

GOPHER = 5.76e23


@pytest.mark.parametrize(
    ("law", "low", "high"),
    [
        ("hoffmann", 32e9, 41e9),
        ("besiroglu", 70e9, 76e9),
        ("isoflop/approach-2", 62e9, 65e9),
        ("isoflop/approach-1", 66e9, 70e9),
        ("porian", 70e9, 80e9),
    ],
)
def test_each_approach_at_gophers_budget(law: str, low: float, high: float) -> None:
    plan = plan_budget(flops=GOPHER, law=law)
    assert low < plan.params.value < high
    assert plan.params.low < plan.params.value < plan.params.high
    assert 6 * plan.params.value * plan.tokens.value == pytest.approx(GOPHER, rel=1e-6)
    assert any("extrapolation" in warning for warning in plan.warnings)


def test_llama3_sizes_its_own_run() -> None:
    plan = plan_budget(flops=3.8e25, law="llama3")
    assert plan.params.value == pytest.approx(402e9, rel=0.01)
    assert plan.tokens.value == pytest.approx(16.55e12, rel=0.01)
    assert plan.params.low < 402e9 < plan.params.high


def test_kaplan_would_have_built_larger() -> None:
    assert plan_budget(flops=GOPHER, law="kaplan").params.value > 5 * plan_budget(flops=GOPHER).params.value


def test_grid_agrees_with_closed_form() -> None:
    law = load("besiroglu")
    closed = allocate(law, 1e22)
    numeric = allocate(law, 1e22, inference_tokens=1.0)  # one token: the numeric path, no different result
    assert numeric.params[0] == pytest.approx(closed.params[0], rel=2e-3)
    assert numeric.loss is not None and closed.loss is not None
    assert numeric.loss[0] == pytest.approx(closed.loss[0], rel=1e-7)


def test_inference_to_come_buys_a_smaller_model_trained_longer() -> None:
    plain, served = plan_budget(flops=GOPHER), plan_budget(flops=GOPHER, inference_tokens=2e12)
    assert served.params.value < plain.params.value
    assert served.tokens.value / served.params.value > plain.tokens.value / plain.params.value
    assert served.training_flops.value < served.flops.value
    spent = 6 * served.params.value * served.tokens.value + 2 * served.params.value * 2e12
    assert spent == pytest.approx(GOPHER, rel=1e-6)


def test_sardana_saving_at_the_quality_of_a_13b_chinchilla() -> None:
    law = load("hoffmann")
    best_of_13b = min(
        (allocate(law, flops) for flops in np.geomspace(1e22, 1e23, 60)), key=lambda a: abs(a.params[0] - 13e9)
    )
    tokens = float(best_of_13b.tokens[0])
    target = law.predict(params=13e9, tokens=tokens)[0].value
    usual = 6 * 13e9 * tokens + 2 * 13e9 * 2e12
    best = least_flops(law, target, inference_tokens=2e12)
    # The paper says 17% for a 7B model.
    assert 1 - best.flops[0] / usual == pytest.approx(0.17, abs=0.03)
    assert best.params[0] == pytest.approx(7e9, rel=0.25)


def test_scarce_data_are_repeated_but_less_and_less() -> None:
    ample, scarce = plan_budget(flops=1e23, unique_tokens=1e13), plan_budget(flops=1e23, unique_tokens=2e10)
    assert ample.epochs.value == 1.0 and scarce.epochs.value > 4
    assert scarce.loss.value > ample.loss.value


def test_least_budget_for_a_loss_reaches_it() -> None:
    plan = plan_budget(target_loss=2.1)
    assert plan.loss.value == pytest.approx(2.1, abs=2e-3)
    again = plan_budget(flops=plan.flops.value)
    assert again.loss.value == pytest.approx(2.1, abs=2e-3)


def test_days_and_dollars_on_a_cluster() -> None:
    plan = plan_budget(days=10, cluster="h100-sxm:64")
    assert plan.days.value == pytest.approx(10, rel=0.05)
    money = plan_budget(usd=plan.usd.value, cluster="h100-sxm:64")
    assert money.params.value == pytest.approx(plan.params.value, rel=0.1)
    assert money.usd.value == pytest.approx(plan.usd.value, rel=0.05)
    days = [point.days for point in plan.batches]
    assert len(days) > 3 and days[-1] > min(days)  # far past the critical batch, time to target rises


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "give exactly one"),
        ({"flops": 1e22, "days": 3.0}, "these were given: --flops, --days"),
        ({"days": 3.0}, "--days: needs --cluster"),
        ({"flops": -1.0}, "must be a positive number"),
        ({"target_loss": 0.1}, "below what 'besiroglu' reaches"),
        ({"flops": 1e22, "law": "routed"}, "does not say how to divide a budget"),
        ({"flops": 1e22, "law": "bezirogl"}, "did you mean 'besiroglu'"),
        ({"flops": 1e22, "inference_tokens": -1.0}, "must not be negative"),
    ],
)
def test_bad_budgets_are_one_sentence(asked: dict, sentence: str) -> None:
    with pytest.raises(FroudeError, match=sentence):
        plan_budget(**asked)
