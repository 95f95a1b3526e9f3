"""What-if comparison: both sides, a difference that adds up, and refusals in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from froude.cli import app
from froude.core.errors import FroudeError
from froude.planning.compare import compare, parse_uses
from froude.training.plan import TechniqueUse, TrainPlan

PLAN = {
    "model": "meta-llama/Llama-2-13b-hf",
    "cluster": "a100-sxm-80gb:64",
    "job": {"seq_len": 2048, "global_batch_tokens": 2048 * 64, "tokens": 1e12},
    "layout": {"data_parallel": 64, "zero_stage": 3, "recompute": "full"},
    "stack": "fsdp",
}


def plan(**changes: object) -> TrainPlan:
    return TrainPlan.parse({**PLAN, **changes})


def test_the_difference_adds_up() -> None:
    found = compare(plan(), ["zero-plus-plus"])
    change = found.changed.step_s - found.baseline.step_s
    assert change < 0
    assert sum(found.difference_s.values()) == pytest.approx(change, abs=1e-9)
    grown = sum(found.changed.memory_bytes.values()) - sum(found.baseline.memory_bytes.values())
    assert sum(found.difference_bytes.values()) == pytest.approx(grown)
    assert found.difference_bytes["secondary weights"] > 0
    assert found.difference_s["weight gathering"] < 0
    assert found.difference_s["forward"] == 0.0


def test_all_off_is_no_difference() -> None:
    off = TechniqueUse(name="zero-plus-plus", knobs={"qwz": False, "hpz": False, "qgz": False})
    found = compare(plan(), [off])
    assert found.gain.json() == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert set(found.difference_s.values()) == {0.0}


def test_gain_interval_holds_the_gain_either_way() -> None:
    quick, wasteful = (
        compare(plan(), ["zero-plus-plus"]),
        compare(
            plan(cluster="a100-sxm-80gb:8", layout={"data_parallel": 8, "zero_stage": 3, "recompute": "full"}),
            ["zero-plus-plus"],
        ),
    )
    for gain in (quick.gain, wasteful.gain):
        assert gain.low <= gain.value <= gain.high


def test_refusals() -> None:
    with pytest.raises(FroudeError, match="needs zero_stage 3"):
        compare(plan(layout={"data_parallel": 64, "zero_stage": 1}), ["zero-plus-plus"])
    with pytest.raises(FroudeError, match="did you mean 'zero-plus-plus'"):
        compare(plan(), ["zero-plus"])
    with pytest.raises(FroudeError, match="already on"):
        compare(plan(techniques=[{"name": "zero-plus-plus"}]), ["zero-plus-plus"])
    with pytest.raises(FroudeError, match="no technique"):
        compare(plan(), [])


def test_knobs_from_text() -> None:
    (use,) = parse_uses(["zero-plus-plus"], ["hpz=false", "zero-plus-plus.group_size=128"])
    assert use == TechniqueUse(name="zero-plus-plus", knobs={"hpz": False, "group_size": 128})
    with pytest.raises(FroudeError, match="NAME=VALUE"):
        parse_uses(["zero-plus-plus"], ["hpz"])
    with pytest.raises(FroudeError, match=r"Write a\.hpz=false"):
        parse_uses(["a", "b"], ["hpz=false"])


def test_command(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    plan().write(path)
    run = CliRunner().invoke(app, ["compare", str(path), "--with", "zero-plus-plus", "--json", "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["schema_version"] == 1
    assert found["gain"]["low"] <= found["gain"]["value"] <= found["gain"]["high"]
    assert found["baseline"]["step_s"]["value"] > found["changed"]["step_s"]["value"]
    page = (tmp_path / "report.html").read_text()
    assert "secondary weights" in page and "<svg" in page
    shown = CliRunner().invoke(app, ["compare", str(path), "--with", "zero-plus-plus", "--knob", "hpz=false"])
    assert "where the difference comes from" in shown.stdout


def test_a_technique_of_serving_says_where_it_belongs() -> None:
    with pytest.raises(FroudeError, match="simulate serve --with nanoflow"):
        compare(plan(), ["nanoflow"])
