"""Predicted steps: invariants, and the search against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.catalogue import resolve
from froude.program.evaluate import evaluate
from froude.program.play import play
from froude.timing.stack import find_stack
from froude.training.bounds import lower_bound_s
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.search import enumerate_layouts, parse_fixed, search
from froude.training.step import predict, price_layouts
from froude.training.waterfall import waterfall

JOB = Job(seq_len=4096, global_batch_tokens=4096 * 64)


def scenario(model: str = "llama-3.1-8b", cluster: str = "h100-sxm:32", stack: str = "megatron") -> Scenario:
    return Scenario(resolve(model), parse_cluster(cluster), JOB, find_stack(stack))


LAYOUTS = [layout for layout in enumerate_layouts(scenario(), {}) if scenario().objection(layout) is None]


@given(st.sampled_from(LAYOUTS), st.sampled_from(["megatron", "megatron-2021", "fsdp"]))
@settings(max_examples=25, deadline=None)
def test_one_program_two_evaluations(layout: Layout, stack: str) -> None:
    program = predict(scenario(stack=stack), [layout])[0].program
    alone = evaluate(program, contention=False).makespan_s[0]
    assert play(program, contention=False).timeline.makespan_s[0] == pytest.approx(alone, rel=1e-9)
    shared = evaluate(program).makespan_s[0]
    assert play(program).timeline.makespan_s[0] == pytest.approx(shared, rel=0.05)
    assert shared >= alone * (1 - 1e-9)


def test_contention_agrees_at_the_median() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for i in rng.choice(len(LAYOUTS), 15, replace=False):
        program = predict(scenario(stack="fsdp"), [LAYOUTS[i]])[0].program
        errors.append(abs(evaluate(program).makespan_s[0] / play(program).timeline.makespan_s[0] - 1))
    assert np.median(errors) < 0.02


@given(st.sampled_from(LAYOUTS))
@settings(max_examples=25, deadline=None)
def test_the_bound_is_a_bound_and_the_waterfall_adds_up(layout: Layout) -> None:
    here = scenario()
    prediction = predict(here, [layout])[0]
    bound = lower_bound_s(here, price_layouts(here, [layout])[0])[0]
    assert bound <= prediction.step_s * (1 + 1e-9)
    parts = waterfall(prediction)
    assert parts.total_s == pytest.approx(prediction.step_s, rel=1e-6)
    assert min(parts.seconds.values()) >= -1e-9
    assert 0 < prediction.mfu < 1


def test_batches_of_layouts_equal_single_ones() -> None:
    here = scenario()
    some = LAYOUTS[::37]
    together = predict(here, some)
    for layout, prediction in zip(some, together, strict=True):
        single = predict(here, [layout])[0]
        assert prediction.layout is layout
        assert prediction.step_s == pytest.approx(single.step_s, rel=1e-6)
        assert prediction.peak_bytes == pytest.approx(single.peak_bytes, rel=1e-9)


def test_search_returns_what_evaluating_everything_would() -> None:
    here = scenario(cluster="h100-sxm:8")
    layouts = [layout for layout in enumerate_layouts(here, {}) if here.objection(layout) is None]
    everything = sorted(p.step_s for p in predict(here, layouts) if p.p_fit >= 0.9)
    found = [p.step_s for p in search(here, keep=5).best]
    assert found == pytest.approx(everything[:5], rel=1e-6)


@pytest.mark.parametrize(("better", "worse"), [("h100-sxm:32", "a100-sxm-80gb:32"), ("h200-sxm:32", "h100-sxm:32")])
def test_better_machines_are_not_slower(better: str, worse: str) -> None:
    fast, slow = (search(scenario(cluster=c), keep=1).best[0].step_s for c in (better, worse))
    assert fast <= slow * (1 + 1e-9)


def test_zero_shards_what_it_says() -> None:
    here = scenario()
    peaks = [
        predict(here, [Layout(data_parallel=32, zero_stage=zero, recompute="full")])[0]
        .ledger(own_machine=False)
        .stages[0]
        for zero in (0, 1, 3)
    ]
    assert peaks[1]["optimizer"] == pytest.approx(peaks[0]["optimizer"] / 32)
    assert peaks[1]["weights"] == peaks[0]["weights"]
    assert peaks[2]["weights"] == pytest.approx(peaks[0]["weights"] / 32)
    assert peaks[2]["gradients"] == pytest.approx(peaks[0]["gradients"] / 32)


def test_recompute_trades_time_for_memory() -> None:
    here = scenario()
    none, full = predict(
        here,
        [Layout(data_parallel=32, micro_batch=2, recompute=r) for r in ("none", "full")],  # type: ignore[arg-type]
    )
    assert full.step_s > none.step_s * 1.2
    assert full.peak_bytes < none.peak_bytes


def test_a_parallel_step_on_one_device_is_its_work() -> None:
    one = Scenario(
        resolve("smollm2-135m"), parse_cluster("a100-sxm-80gb:1"), Job(seq_len=2048, global_batch_tokens=2048)
    )
    prediction = predict(one, [Layout(data_parallel=1, zero_stage=0)])[0]
    assert prediction.bubble_fraction == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"data_parallel": 16}, "uses 16 devices"),
        ({"data_parallel": 4, "pipeline_parallel": 8, "virtual_stages": 5}, "virtual stages are more"),
        ({"data_parallel": 32, "micro_batch": 4}, "does not divide the global batch"),
        ({"data_parallel": 16, "pipeline_parallel": 2, "zero_stage": 3}, "not combined with pipelines"),
        ({"data_parallel": 16, "pipeline_parallel": 2, "virtual_stages": 2}, "one chunk per stage"),
        ({"data_parallel": 32, "expert_parallel": 4}, "needs a mixture of experts"),
        ({"data_parallel": 4, "context_parallel": 8, "tensor_parallel": 1, "expert_parallel": 3}, "mixture of experts"),
    ],
)
def test_impossible_layouts_say_why(layout: dict, said: str) -> None:
    with pytest.raises(FroudeError, match=said):
        predict(scenario(), [Layout(**layout)])


def test_a_model_that_cannot_fit_says_what_comes_nearest() -> None:
    with pytest.raises(FroudeError, match="does not fit on 4 x l4"):
        search(Scenario(resolve("gpt-3-175b"), parse_cluster("l4:4"), JOB))


def test_fixed_fields() -> None:
    assert parse_fixed("tp=8, pp=4,recompute=full") == {
        "tensor_parallel": 8,
        "pipeline_parallel": 4,
        "recompute": "full",
    }
    for bad in ("tq=8", "tp", "tp=x", "recompute=some", "zero=7"):
        with pytest.raises(FroudeError):
            parse_fixed(bad)
    found = search(scenario(), keep=3, fixed={"tensor_parallel": 4}).best
    assert {p.layout.tensor_parallel for p in found} == {4}


MIXTURE = Scenario(resolve("mixtral-8x7b"), parse_cluster("h100-sxm:32"), JOB, find_stack("megatron"))


def test_experts_are_spread_and_states_conserved() -> None:
    layouts = [Layout(data_parallel=32, expert_parallel=ep, recompute="full") for ep in (1, 2, 8)]
    for layout, prediction in zip(layouts, predict(MIXTURE, layouts), strict=True):
        parts = prediction.ledger(own_machine=False).stages[0]
        arch = MIXTURE.architecture
        experts = arch.layers * 8 * arch.expert_parameters
        held = arch.parameters - experts + experts / layout.expert_parallel
        assert parts["weights"] == pytest.approx(2 * held, rel=1e-6)
        assert parts["optimizer"] == pytest.approx(12 * arch.parameters / 32, rel=1e-6)


def test_spreading_experts_costs_an_exchange() -> None:
    together, spread = predict(
        MIXTURE, [Layout(data_parallel=32, expert_parallel=ep, zero_stage=1, recompute="full") for ep in (1, 8)]
    )
    assert "expert and context communication" not in waterfall(together).seconds
    assert waterfall(spread).seconds["expert and context communication"] > 0


def test_context_parallelism_divides_a_long_sequence() -> None:
    job = Job(seq_len=131072, global_batch_tokens=131072 * 8)
    long = Scenario(resolve("llama-3.1-8b"), parse_cluster("h100-sxm:32"), job, find_stack("megatron"))
    one, four = predict(
        long, [Layout(data_parallel=8 // cp, context_parallel=4 * cp, recompute="full") for cp in (1, 4)]
    )
    assert (
        four.ledger(own_machine=False).stages[0]["activations"] < one.ledger(own_machine=False).stages[0]["activations"]
    )
    # Each rank does a quarter of each of four times as many sequences: the work is the same, the ring is longer.
    assert four.step_s == pytest.approx(one.step_s, rel=0.25)


def test_a_tied_embedding_lies_on_both_ends_of_a_pipeline() -> None:
    one = scenario("Qwen/Qwen2.5-3B", "h100-sxm:8")
    arch = one.architecture
    assert arch.tied_embeddings
    [piped] = predict(one, [Layout(data_parallel=4, pipeline_parallel=2)])
    stages = piped.ledger(own_machine=False).stages
    held = sum(stage["weights"] for stage in stages.values()) / 2.0
    assert held == pytest.approx(arch.parameters + arch.vocab * arch.hidden)
    [whole] = predict(one, [Layout(data_parallel=8)])
    assert whole.ledger(own_machine=False).stages[0]["weights"] / 2.0 == pytest.approx(arch.parameters)


def test_sharded_weights_are_whole_while_they_work() -> None:
    one = scenario(cluster="h100-sxm:32")
    arch = one.architecture
    kept, sharded = predict(one, [Layout(data_parallel=32, zero_stage=stage, recompute="full") for stage in (1, 3)])
    parts = [p.ledger(own_machine=False).stages[0]["activations"] for p in (kept, sharded)]
    # at the head: its weights, the layer's that was fetched ahead, and its gradients in fp32
    head, layer = arch.head_parameters + arch.final_norm_parameters, arch.layer_parameters
    assert parts[1] - parts[0] == pytest.approx(2.0 * (head + layer) + 4.0 * head, rel=1e-6)
