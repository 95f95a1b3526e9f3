"""Copies of sharded states (HSDP): what is gathered near, what is summed far."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.catalogue import resolve
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import predict, price_layouts

SCENARIO = Scenario(
    resolve("llama-3-8b"),
    parse_cluster("h100-sxm:64"),
    Job(seq_len=4096, global_batch_tokens=4096 * 64),
    find_stack("fsdp"),
)


def layout(replicate: int, zero_stage: int = 3) -> Layout:
    return Layout.parse({"data_parallel": 64, "zero_stage": zero_stage, "replicate": replicate})


def test_weights_are_gathered_in_the_node_and_shards_summed_between_nodes() -> None:
    (batch,) = price_layouts(SCENARIO, [layout(8)])
    assert batch.work.gather_forward is not None and batch.work.reduce is not None
    (gather,) = batch.work.gather_forward.collectives["layer"]
    scatter, across = batch.work.reduce.collectives["layer"]
    assert np.all(gather.group.ranks == 8) and np.all(scatter.group.ranks == 8)
    assert np.all(across.group.ranks == 8) and np.all(across.group.stride == 8)
    assert np.asarray(across.bytes) == pytest.approx(np.asarray(scatter.bytes) / 8)


def test_copies_trade_memory_for_traffic() -> None:
    one, eight = predict(SCENARIO, [layout(1), layout(8)])
    assert eight.peak_bytes > one.peak_bytes
    slow = SCENARIO.cluster.model_copy(update={"scaleout_bandwidth": 5e9})
    one, eight = predict(replace(SCENARIO, cluster=slow), [layout(1), layout(8)])
    assert eight.step_s < one.step_s


def test_one_copy_is_plain_sharding() -> None:
    (batch,) = price_layouts(SCENARIO, [layout(1)])
    assert batch.work.reduce is not None
    assert [c.name for c in batch.work.reduce.collectives["layer"]] == ["gradients"]


def test_a_compiled_loop_sums_copies_after_the_backward_pass() -> None:
    compiled = replace(SCENARIO, stack=find_stack("maxtext"))
    (batch,) = price_layouts(compiled, [layout(8)])
    assert batch.work.update["layer"][0].name == "gradient-copies"


@pytest.mark.parametrize(("replicate", "zero_stage", "words"), [(5, 3, "does not divide"), (8, 0, "needs sharded")])
def test_impossible_copies(replicate: int, zero_stage: int, words: str) -> None:
    with pytest.raises(FroudeError, match=words):
        predict(SCENARIO, [layout(replicate, zero_stage)])
