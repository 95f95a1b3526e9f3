"""What happens once the pipeline is empty: reductions that nothing overlaps delay the step once, not stage by stage."""

from __future__ import annotations

import numpy as np
import pytest

from froude.machines.cluster import Cluster
from froude.models.catalogue import resolve
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import predict


@pytest.mark.parametrize(("schedule", "chunks"), [("1f1b", 1), ("interleaved-1f1b", 3)])
def test_a_slow_reduction_is_paid_once(schedule: str, chunks: int) -> None:
    layout = Layout(
        data_parallel=2, tensor_parallel=8, pipeline_parallel=8, virtual_stages=chunks, schedule=schedule, zero_stage=0
    )
    cluster = Cluster.parse({"device": "a100-sxm-80gb", "count": 128})
    scenario = Scenario(
        architecture=resolve("megatron/gpt-39.1b"),
        cluster=cluster,
        job=Job(seq_len=2048, global_batch_tokens=2048 * 32),
        stack=find_stack("megatron-2021"),
    )
    found = predict(scenario, [layout])[0]
    lone = Scenario(scenario.architecture, cluster.resized(64), Job(seq_len=2048, global_batch_tokens=2048 * 16))
    alone = predict(
        Scenario(lone.architecture, lone.cluster, lone.job, scenario.stack),
        [layout.model_copy(update={"data_parallel": 1})],
    )[0]
    reductions = [task for task in found.program.tasks if task.action.kind == "reduce-gradients"]
    per_stage: dict[int, float] = {}
    for task in reductions:
        seconds = np.asarray(found.program.costs[task.cost].seconds).item()
        per_stage[task.lane.device] = per_stage.get(task.lane.device, 0.0) + seconds
    slower = found.step_s / found.straggling - alone.step_s / alone.straggling
    assert 0.5 * max(per_stage.values()) < slower < 1.5 * max(per_stage.values())
