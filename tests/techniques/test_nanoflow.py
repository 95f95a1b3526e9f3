"""NanoFlow: the paper's inputs, a gain that emerges from overlap, and the controls that take it away."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from froude.cli import app
from froude.machines.cluster import Cluster
from froude.machines.device import find_device
from froude.models.catalogue import resolve
from froude.models.operator import Attention, Matmul
from froude.program.evaluate import evaluate
from froude.program.play import play
from froude.serving.api import simulate_serve
from froude.serving.engine_spec import find_engine
from froude.serving.iteration_program import (
    KEYS,
    STEPS,
    Content,
    ProgramIterationTime,
    iteration_program,
    layer_work,
    layers_s,
)
from froude.serving.model_time import ModelIterationTime
from froude.serving.technique import ServingContext, techniques
from froude.serving.techniques.nanoflow import NanoFlow
from froude.timing.roofline import Roofline

MODEL = "meta-llama/Llama-2-70b-hf"
LAYERS = 80
# Table 2's iteration: 2,048 tokens of 512-token prompts and 1,024-token answers.
DENSE = Content(1365.0, 1.41e6, 683.0, 683.0 * 512 / 2, 683.0)


def context(**changes: object) -> ServingContext:
    device = find_device("a100-sxm-80gb")
    if changes:
        device = device.model_copy(update=changes)
    cluster = Cluster.parse({"device": device, "count": 8})
    engine = find_engine("vllm")
    return ServingContext(resolve(MODEL), cluster, engine, Roofline(cluster, engine.stack), 8)


A100 = context()


def gain(knobs: dict[str, object], where: ServingContext = A100, content: Content = DENSE) -> float:
    nanoflow = techniques.create("nanoflow", **knobs)
    assert isinstance(nanoflow, NanoFlow)
    plain = layers_s(lambda depth: iteration_program([content], where, depth), LAYERS)
    return float((plain / layers_s(lambda depth: nanoflow.program(content, where, depth), LAYERS))[0])


@pytest.mark.parametrize(
    ("step", "gflop", "measured_ms"),
    # Table 2 of the paper: GFLOP on all devices, and kernels measured one by one.
    [
        ("qkv", 27487.8, 16.08),
        ("output", 21990.2, 16.01),
        ("mlp", 153931.6 + 76965.8, 69.92 + 34.96),
        ("decode-attention", 3665.9, 35.60),
        ("reduce", None, 47.92),
    ],
)
def test_steps_are_those_of_table_2(step: str, gflop: float | None, measured_ms: float) -> None:
    work = layer_work(DENSE, A100)
    if step == "reduce":
        seconds = sum(float(A100.cost.sequence(work[name]).seconds) for name in ("reduce-attention", "reduce-mlp"))
    else:
        # The paper's rows are products and attention alone, without the norms and residuals between them.
        operators = [op for op in work[step] if isinstance(op, Matmul | Attention)]
        seconds = float(A100.cost.sequence(operators).seconds)
        assert gflop is not None
        assert sum(op.flops for op in operators) * 8 * LAYERS / 1e9 == pytest.approx(gflop, rel=0.02)
    # Isolated kernels run at burst clocks, which whole jobs do not keep.
    assert seconds * LAYERS * 1e3 == pytest.approx(measured_ms, rel=0.35)


def test_off_is_exactly_one() -> None:
    assert gain({"first": 0.0}) == 1.0
    time = ModelIterationTime(A100.arch, A100.cluster, A100.engine, A100.cost, 8)
    assert NanoFlow(first=0.0).rewrite_time(time, A100) is time


def test_nano_batches_alone_lose_and_each_overlap_gains() -> None:
    split = gain({"overlap_network": False, "overlap_memory": False})
    network = gain({"overlap_memory": False})
    memory = gain({"overlap_network": False})
    both = gain({})
    assert split < 1.0
    assert network > split and memory > split
    assert both > max(network, memory) > 1.0
    # Overlap cannot beat the busiest lane: all of the products one after the other.
    work = layer_work(DENSE, A100)
    costs = {step: float(A100.cost.sequence(work[step]).seconds) for step in STEPS}
    products = costs["qkv"] + costs["output"] + costs["mlp"] + costs["prompt-attention"]
    assert both < sum(costs.values()) / products


def test_nothing_to_overlap_nothing_to_gain() -> None:
    fast = context(memory_bandwidth=1e18, scaleup_bandwidth=1e18)
    cluster = fast.cluster.model_copy(update={"scaleup_latency_s": 0.0})
    engine = fast.engine
    where = ServingContext(fast.arch, cluster, engine, Roofline(cluster, engine.stack), 8)
    assert gain({}, where) <= 1.0


def test_small_batches_lose_because_weights_are_read_twice() -> None:
    few = Content(128.0, 128.0 * 1000)
    assert gain({}, content=few) < 1.0 < gain({})


def test_playing_and_evaluating_agree() -> None:
    program = NanoFlow().program(DENSE, A100, 3)
    analytic = float(evaluate(program).makespan_s[0])
    assert play(program).timeline.makespan_s[0] == pytest.approx(analytic, rel=0.05)


def test_parts_add_up() -> None:
    first, rest = DENSE.split(640.0)
    assert (first.decoding, first.prompt_tokens) == (640.0, 0.0)
    for name in ("decoding", "context", "prompt_tokens", "prompt_pairs", "prompt_context"):
        assert getattr(first, name) + getattr(rest, name) == pytest.approx(getattr(DENSE, name))


def test_layers_repeat() -> None:
    nanoflow = NanoFlow()
    exact = evaluate(nanoflow.program(DENSE, A100, 12)).makespan_s
    assert layers_s(lambda depth: nanoflow.program(DENSE, A100, depth), 12) == pytest.approx(exact, rel=1e-3)


@pytest.fixture(scope="module")
def times() -> tuple[ModelIterationTime, ProgramIterationTime]:
    plain = ModelIterationTime(A100.arch, A100.cluster, A100.engine, A100.cost, 8)
    changed = NanoFlow().rewrite_time(plain, A100)
    assert isinstance(changed, ProgramIterationTime)
    return plain, changed


@given(st.sampled_from([600, 1000, 1400]), st.integers(1, 1200), st.sampled_from([0, 300, 700]), st.integers(1, 900))
@settings(deadline=None, max_examples=30)
def test_segments_are_affine_exactly(
    times: tuple[ModelIterationTime, ProgramIterationTime], decoding: int, mean: int, prompt: int, later: int
) -> None:
    changed = times[1]
    context, prompts = decoding * mean, [(prompt, 0)] if prompt else []
    first, slope, valid = changed.segment(decoding, context, prompts)
    assert slope >= 0 and valid >= 1
    later = min(later, valid - 1)
    after = [(tokens, prefix + later * tokens) for tokens, prefix in prompts]
    then, _, _ = changed.segment(decoding, context + later * decoding, after)
    assert then == first + slope * later


def test_the_line_between_knots_is_near_the_program(times: tuple[ModelIterationTime, ProgramIterationTime]) -> None:
    plain, changed = times
    keys = (KEYS[7] + KEYS[8]) // 2
    content = Content(1408.0, float(keys))
    nanoflow = NanoFlow()
    exact = layers_s(lambda depth: iteration_program([content], A100, depth), LAYERS) - layers_s(
        lambda depth: nanoflow.program(content, A100, depth), LAYERS
    )
    saved_ps = plain.segment(1408, keys, ())[0] - changed.segment(1408, keys, ())[0]
    assert saved_ps / 1e12 == pytest.approx(float(exact[0]), rel=0.1)


def test_few_tokens_are_left_whole(times: tuple[ModelIterationTime, ProgramIterationTime]) -> None:
    plain, changed = times
    assert changed.segment(511, 511 * 700, ()) == plain.segment(511, 511 * 700, ())
    assert changed.segment(1024, 1024 * 700, ())[0] < plain.segment(1024, 1024 * 700, ())[0]


def test_a_served_trace_is_faster_and_jumping_equals_stepping() -> None:
    load = {"trace": "lognormal:in=300,out=60", "requests": 400, "concurrency": 400}
    how = {"tensor_parallel": 8, "max_seqs": 1024, "chunk_tokens": 2048}
    plain = simulate_serve(MODEL, "a100-sxm-80gb:8", **load, **how)
    jumped = simulate_serve(MODEL, "a100-sxm-80gb:8", **load, **how, techniques=["nanoflow"])
    stepped = simulate_serve(MODEL, "a100-sxm-80gb:8", **load, **how, techniques=["nanoflow"], stepping=True)
    assert jumped.outcome.finish_ps == stepped.outcome.finish_ps
    assert jumped.outcome.first_ps == stepped.outcome.first_ps
    assert jumped.outcome.busy_ps < plain.outcome.busy_ps


def test_command() -> None:
    options = "--cluster a100-sxm-80gb:8 --tp 8 --trace lognormal:in=300,out=30 --requests 50 --concurrency 50 --json"
    run = CliRunner().invoke(app, ["simulate", "serve", "--model", MODEL, *options.split(), "--with", "nanoflow"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["completed"] == 50


def test_contents_may_be_arrays_over_candidates() -> None:
    many = Content(np.array([1365.0, 700.0]), np.array([1.41e6, 7e5]), 683.0, 683.0 * 256, 683.0)
    nanoflow = NanoFlow()
    both = layers_s(lambda depth: nanoflow.program(many, A100, depth), LAYERS)
    one = layers_s(lambda depth: nanoflow.program(DENSE, A100, depth), LAYERS)
    assert both[0] == pytest.approx(one[0], rel=1e-3)
