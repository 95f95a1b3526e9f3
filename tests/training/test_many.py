"""Plans priced and evaluated together take what each takes alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from froude.machines.cluster import Cluster
from froude.models.catalogue import resolve
from froude.timing.constants import default_constants
from froude.timing.stack import find_stack
from froude.training.many import Steps
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import predict
from froude.training.technique import techniques


def case(model: str, device: str, count: int, sequences: int, **layout: object) -> tuple[Scenario, Layout]:
    job = Job(seq_len=2048, global_batch_tokens=sequences * 2048)
    cluster = Cluster.parse({"device": device, "count": count})
    return Scenario(resolve(model), cluster, job), Layout.parse(layout)


CASES = [
    case("llama-3-8b", "h100-sxm", 16, 32, data_parallel=8, tensor_parallel=2, zero_stage=1),
    case("llama-3-8b", "h100-sxm", 32, 64, data_parallel=8, tensor_parallel=4, micro_batch=2, zero_stage=1),
    case("llama-3-70b", "h100-sxm", 64, 64, data_parallel=4, tensor_parallel=4, pipeline_parallel=4),
    case("llama-3-70b", "a100-sxm-80gb", 64, 64, data_parallel=2, tensor_parallel=8, pipeline_parallel=4),
    case("llama-3-8b", "h100-sxm", 16, 32, data_parallel=16, zero_stage=3),
]


def test_together_as_alone() -> None:
    together = Steps(CASES).seconds()
    alone = [predict(scenario, [layout])[0].step_s for scenario, layout in CASES]
    assert together == pytest.approx(alone, rel=1e-4)


def test_other_constants() -> None:
    slower = default_constants().but({"clock.hopper": 0.5}, "test")
    steps = Steps(CASES)
    changed = steps.seconds(slower) / steps.seconds()
    assert (changed[[0, 1, 2, 4]] > 1.2).all()
    assert changed[3] == pytest.approx(1.0, rel=1e-4)
    assert steps.seconds() == pytest.approx(Steps(CASES).seconds(), rel=1e-4)


def test_long_pipelines_are_periodic() -> None:
    scenario, layout = case("llama-3-8b", "h100-sxm", 4, 64, data_parallel=1, pipeline_parallel=4)
    assert Steps([(scenario, layout)]).seconds()[0] == pytest.approx(predict(scenario, [layout])[0].step_s, rel=1e-3)


def test_programs_that_techniques_rewrite() -> None:
    scenario, layout = case("llama-3-8b", "h100-sxm", 8, 16, data_parallel=1, tensor_parallel=2, pipeline_parallel=4)
    with_it = Scenario(
        scenario.architecture,
        scenario.cluster,
        scenario.job,
        find_stack("megatron"),
        (techniques.create("vocabulary-parallelism"),),
    )
    both = Steps([(scenario, layout), (with_it, layout)]).seconds()
    assert both == pytest.approx([predict(s, [layout])[0].step_s for s in (scenario, with_it)], rel=1e-3)


def test_impossible_layouts_say_why() -> None:
    steps = Steps([CASES[0], (CASES[0][0], Layout(data_parallel=3))])
    assert steps.errors[0] is None
    assert steps.errors[1] is not None and "3 devices" in steps.errors[1]
    seconds = steps.seconds()
    assert math.isfinite(seconds[0]) and np.isnan(seconds[1])
