"""A plan carries what it was priced by, so that it gives its own figures again."""

from __future__ import annotations

from pathlib import Path

import pytest

from froude import explain, plan_train, simulate_train
from froude.core.errors import FroudeError
from froude.machines.cluster import Cluster
from froude.planning.compare import compare
from froude.training import scenario
from froude.training.plan import TrainPlan

SMALL = {"seq_len": 4096, "global_batch_tokens": 64 * 4096, "top": 1, "fix": "zero_stage=3"}


def constants(folder: Path, clock: float) -> Path:
    path = folder / f"clock-{clock}.yaml"
    path.write_text(f"constants: {{clock.hopper: {clock}}}\nsource: a test\n")
    return path


def test_a_plan_made_with_constants_reproduces_its_figures(tmp_path: Path) -> None:
    slow = plan_train("llama-3.1-8b", "h100-sxm:8", constants=constants(tmp_path, 0.4), **SMALL).plans[0]
    slow.plan.write(tmp_path / "plan.yaml")
    plan = TrainPlan.read(tmp_path / "plan.yaml")
    assert plan == slow.plan
    step_s = slow.prediction.step_s
    assert simulate_train(plan).prediction.step_s == pytest.approx(step_s, rel=1e-12)
    assert explain(plan).step_s == pytest.approx(step_s, rel=1e-12)
    assert compare(plan, ["zero-plus-plus"]).baseline.planned.prediction.step_s == pytest.approx(step_s, rel=1e-12)
    other = constants(tmp_path, 0.8)  # given, they take the place of the plan's
    assert simulate_train(plan, constants=other).prediction.step_s < 0.9 * step_s
    assert explain(plan, constants=other).step_s < 0.9 * step_s


def test_a_plan_says_what_prices_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra: a stand-in for its tables halves the memory's bandwidth."""

    def with_kernels(cluster: Cluster, kernels: str, started_s: float = 0.0) -> Cluster:
        if kernels == "fitted":
            return cluster
        slower = cluster.device.model_copy(update={"memory_bandwidth": cluster.device.memory_bandwidth / 2})
        return cluster.model_copy(update={"device": slower})

    fitted = plan_train("llama-3.1-8b", "h100-sxm:8", **SMALL).plans[0].plan
    monkeypatch.setattr(scenario, "with_kernels", with_kernels)
    measured = fitted.priced_by(kernels="measured")
    assert TrainPlan.parse(measured.model_dump()) == measured
    slow, fast = simulate_train(measured).prediction.step_s, simulate_train(fitted).prediction.step_s
    assert slow > 1.02 * fast
    assert explain(measured).step_s == slow
    assert simulate_train(measured, kernels="fitted").prediction.step_s == fast
    assert explain(fitted, kernels="measured").step_s == slow


def test_prices_that_there_are_not() -> None:
    plan = plan_train("llama-3.1-8b", "h100-sxm:8", **SMALL).plans[0].plan
    with pytest.raises(FroudeError, match="did you mean"):
        simulate_train(plan, kernels="mesured")
    with pytest.raises(FroudeError, match="kernels"):
        TrainPlan.parse({**plan.model_dump(), "kernels": "mesured"})
