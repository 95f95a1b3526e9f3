"""Explanations: waterfalls that add up, changes that help, and causes that were planted are found again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from froude.cli import app
from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.catalogue import resolve
from froude.planning.explain import Other, _far_better, explain, neighbours
from froude.planning.suspects import rank_suspects
from froude.timing.constants import default_constants
from froude.training.calibration import Calibration
from froude.training.plan import Job, Layout, TrainPlan
from froude.training.scenario import Scenario
from froude.training.step import predict

PLAN = {
    "model": "meta-llama/Llama-2-13b-hf",
    "cluster": "a100-sxm-80gb:64",
    "job": {"seq_len": 2048, "global_batch_tokens": 2048 * 32},
    "layout": {"data_parallel": 8, "tensor_parallel": 4, "pipeline_parallel": 2, "zero_stage": 1},
}


def plan(**changes: object) -> TrainPlan:
    return TrainPlan.parse({**PLAN, **changes})


def step_s(scenario: Scenario, one: TrainPlan) -> float:
    return predict(scenario, [one.layout])[0].step_s


@pytest.mark.parametrize(
    ("name", "sigmas", "nodes"),
    [
        ("clock.ampere", -2.5, 8),
        ("clock.ampere", 1.0, 1),
        ("fusion.transformer-engine.traffic", 1.5, 1),
    ],
)
def test_a_planted_constant_is_among_the_first_three(name: str, sigmas: float, nodes: int) -> None:
    layout = {"data_parallel": nodes, "tensor_parallel": 8, "zero_stage": 1}
    job = {"seq_len": 2048, "global_batch_tokens": 2048 * 64 * nodes}
    one = plan(layout=layout, cluster=f"a100-sxm-80gb:{8 * nodes}", job=job)
    scenario = Scenario.of(one)
    constant = default_constants().table[name]
    assert constant.prior is not None
    planted = Calibration(constants={name: constant.value * math.exp(constant.prior[1] * sigmas)})
    measured_s = step_s(planted.apply(scenario), one)
    suspects = rank_suspects(scenario, one.layout, measured_s)
    assert name in [suspect.constant for suspect in suspects[:3]]
    found = next(suspect for suspect in suspects if suspect.constant == name)
    assert math.copysign(1.0, found.sigmas) == math.copysign(1.0, sigmas)
    assert sum(suspect.plausibility for suspect in suspects) == pytest.approx(1.0)


def test_a_planted_slow_network_is_found() -> None:
    job = {"seq_len": 2048, "global_batch_tokens": 2048 * 64}
    one = plan(layout={"data_parallel": 64, "zero_stage": 3, "recompute": "full"}, job=job)
    scenario = Scenario.of(one)
    measured_s = step_s(Calibration(constants={"link.scaleout_efficiency": 0.15}).apply(scenario), one)
    names = [(s.constant, s.name) for s in rank_suspects(scenario, one.layout, measured_s)[:3]]
    assert any("scaleout" in constant or "between nodes" in name or "network" in name for constant, name in names)


def test_planted_choices_are_found() -> None:
    one = plan()
    scenario = Scenario.of(one)
    unfused = step_s(replace(scenario, stack=scenario.stack.but(attention="unfused")), one)
    assert "attention is not fused" in [s.name for s in rank_suspects(scenario, one.layout, unfused)[:3]]
    again = plan(layout={**PLAN["layout"], "recompute": "full"})  # type: ignore[dict-item]
    recomputed = step_s(Scenario.of(again), again)
    suspects = rank_suspects(scenario, one.layout, recomputed)
    found = next(s for s in suspects[:3] if s.name == "full recomputation is on")
    assert found.predicted_step_s == pytest.approx(recomputed, rel=1e-3)


def test_no_gap_needs_no_cause() -> None:
    one = plan()
    scenario = Scenario.of(one)
    suspects = rank_suspects(scenario, one.layout, step_s(scenario, one))
    assert all(abs(s.sigmas) < 0.1 for s in suspects if s.constant)
    found = explain(one, measured_step_s=1.05 * step_s(scenario, one), against="tp=8")
    assert any("nothing to explain" in warning for warning in found.warnings)


def test_what_nothing_explains_is_said() -> None:
    one = plan()
    found = explain(one, measured_step_s=30.0 * step_s(Scenario.of(one), one), against="tp=8")
    assert any("no suspect alone" in warning for warning in found.warnings)


def test_changes_help_fit_and_are_what_is_predicted_for_them() -> None:
    poor = plan(layout={**PLAN["layout"], "recompute": "full"})  # type: ignore[dict-item]
    found = explain(poor, against="tp=8")
    assert found.changes
    steps = [change.step_s for change in found.changes]
    assert steps == sorted(steps)
    for change in found.changes:
        assert change.plan is not None
        assert change.p_fit >= 0.9
        assert change.gain > 1.0
        assert step_s(Scenario.of(change.plan), change.plan) == pytest.approx(change.step_s)
        assert sum(change.difference_s.values()) == pytest.approx(change.step_s - found.step_s)
    recompute = next(change for change in found.changes if change.what.startswith("recompute full -> none"))
    assert recompute.reasons[0][0] == "backward"


def test_no_better_neighbour_is_missed() -> None:
    one = plan(layout={**PLAN["layout"], "recompute": "full"})  # type: ignore[dict-item]
    scenario = Scenario.of(one)
    every = predict(scenario, [layout for _, layout in neighbours(scenario, one.layout)])
    best = min(p.step_s for p in every if p.p_fit >= 0.9)
    assert explain(one, against="tp=8").changes[0].step_s <= best * (1.0 + 1e-9)


def test_neighbours_are_possible_and_differ_in_one_field_and_what_follows() -> None:
    one = plan()
    scenario = Scenario.of(one)
    found = dict(neighbours(scenario, one.layout))
    assert any("tensor_parallel 4 -> 8" in what for what in found)
    assert any("pipeline_parallel 2 -> 1" in what for what in found)
    for layout in found.values():
        assert scenario.objection(layout) is None
        assert layout != one.layout


def test_another_layout_is_worse_for_reasons_that_add_up() -> None:
    found = explain(plan(), against="tp=8,pp=1")
    (other,) = found.others
    assert sum(other.difference_s.values()) == pytest.approx(other.step_s - found.step_s)
    assert other.plan is not None
    assert other.plan.layout.data_parallel == 8
    assert sum(found.waterfall.seconds.values()) == pytest.approx(found.step_s)


def test_other_kinds_by_default() -> None:
    found = explain(plan())
    whats = [what for other in found.others for what in other.what.split("; ")]
    assert whats[0] == "the best of all"
    assert {"the best without tensor parallelism", "the best without a pipeline"} <= set(whats)
    assert found.others[0].step_s <= min(other.step_s for other in found.others if other.plan is not None)
    assert not found.best
    best = found.others[0].plan
    assert best is not None
    again = explain(best)
    assert all(other.gain < 1.001 for other in again.others if other.plan is not None)
    assert "the best of all" not in "; ".join(other.what for other in again.others)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"against": "tp=3"}, "against"),
        ({"against": "tq=3"}, "tp"),
        ({"measured_step_s": -1.0}, "measured-step-s"),
        ({"measured_step_s": math.nan}, "measured-step-s"),
    ],
)
def test_refusals(options: dict[str, object], words: str) -> None:
    with pytest.raises(FroudeError, match=words):
        explain(plan(), **options)  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    plan().write(tmp_path / "plan.yaml")
    arguments = ["explain", str(tmp_path / "plan.yaml"), "--against", "tp=8", "--measured-step-s", "9"]
    shown = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert {"waterfall_s", "changes", "others", "suspects", "measured_step_s", "warnings"} <= set(shown)
    printed = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "report")])
    assert printed.exit_code == 0
    assert "how to check" in printed.stdout
    assert (tmp_path / "report" / "report.html").read_text("utf-8").count("<table>") >= 2


def test_learned_constants_are_where_an_explanation_starts(tmp_path: Path) -> None:
    one = plan()
    file = tmp_path / "ours.yaml"
    Calibration(constants={"clock.ampere": 0.6}).write(file)
    usual, ours = explain(one), explain(one, constants=file)
    assert ours.step_s == pytest.approx(step_s(Calibration.read(file).apply(Scenario.of(one)), one), rel=1e-6)
    assert ours.step_s > usual.step_s
    # what a step takes by those constants needs no cause
    told = rank_suspects(Scenario.of(one), one.layout, ours.step_s, Calibration.read(file))
    assert told[0].predicted_step_s == pytest.approx(ours.step_s, rel=0.05)
    clock = next(suspect for suspect in told if suspect.constant == "clock.ampere")
    assert clock.assumed == 0.6 and abs(clock.sigmas) < 0.1


def test_a_layout_out_of_reach_of_single_changes_is_pointed_out() -> None:
    slow = Other("slow", plan(), step_s=9.9, p_fit=1.0, gain=1.02)
    fast = Other("the best of all", plan(), step_s=5.0, p_fit=1.0, gain=2.0)
    (said,) = _far_better((slow,), (fast,))
    assert "takes 5 s, 2.00 times as fast" in said
    assert not list(_far_better((fast,), (fast,)))  # a single change leads there
    assert not list(_far_better((), (replace(fast, p_fit=0.1),)))


def test_the_other_exchange_of_a_divided_sequence_is_tried() -> None:
    layout = Layout(data_parallel=2, context_parallel=4, zero_stage=1, recompute="full")
    job = Job(seq_len=32768, global_batch_tokens=32768 * 4)
    scenario = Scenario(resolve("llama-3.1-8b"), parse_cluster("h100-sxm:8"), job)
    assert "context_exchange ring -> all-to-all" in [words for words, _ in neighbours(scenario, layout)]
