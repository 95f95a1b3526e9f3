"""Scatter/gather hand-over: what crosses the slow links, and when it is worth nothing."""

from __future__ import annotations

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.catalogue import resolve
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import StepPrediction, predict, price_layouts
from froude.training.technique import techniques

SEQUENCES = 32


def scenario(*names: str) -> Scenario:
    return Scenario(
        architecture=resolve("megatron/gpt-39.1b"),
        cluster=parse_cluster("a100-sxm-80gb:64"),
        job=Job(seq_len=2048, global_batch_tokens=2048 * SEQUENCES, precision="fp16"),
        stack=find_stack("megatron-2021"),
        techniques=tuple(techniques.create(name) for name in names),
    )


def layout(tensor: int, **changes: object) -> Layout:
    fixed = {"pipeline_parallel": 8, "zero_stage": 0, "sequence_parallel": False, "recompute": "full"}
    return Layout.parse({**fixed, "tensor_parallel": tensor, "data_parallel": 8 // tensor, **changes})


def step(tensor: int, *names: str) -> StepPrediction:
    return predict(scenario(*names), [layout(tensor)])[0]


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_each_rank_sends_its_share(tensor: int) -> None:
    whole = price_layouts(scenario(), [layout(tensor)])[0].work.send[0].bytes
    share = price_layouts(scenario("scatter-gather"), [layout(tensor)])[0].work.send[0].bytes
    assert np.asarray(whole).item() == pytest.approx(tensor * np.asarray(share).item())


def test_nothing_to_divide_without_tensor_parallelism() -> None:
    assert step(1, "scatter-gather").step_s == step(1).step_s


def test_the_gather_inside_the_node_is_paid() -> None:
    base, divided = step(8), step(8, "scatter-gather")
    assert divided.step_s < base.step_s
    send = price_layouts(scenario("scatter-gather"), [layout(8)])[0].work.send
    assert [part.kind for part in send] == ["send", "all-gather"]
    shares = scenario().costs.collective(send[0]).seconds
    assert np.all(np.asarray(divided.program.costs["send"].seconds) > shares)


def test_sequence_parallelism_has_done_it_already() -> None:
    with pytest.raises(FroudeError, match="sequence_parallel already divides"):
        predict(scenario("scatter-gather"), [layout(8, sequence_parallel=True)])
