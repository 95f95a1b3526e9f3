"""Vocabulary parallelism: work and parameters conserved, stages alike, a gain that emerges and goes where it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from froude.cli import app
from froude.core.errors import FroudeError
from froude.machines.cluster import Cluster
from froude.models.architecture import Architecture
from froude.program.evaluate import evaluate
from froude.program.play import play
from froude.program.program import Lane
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.step import StepPrediction, predict
from froude.training.technique import techniques

NAME = "vocabulary-parallelism"
SEQ, STAGES = 2048, 8
SHARES = ("vocabulary-s", "vocabulary-t")


def model(vocab: int, layers: int = 32) -> Architecture:
    """The paper's model of about 4B parameters (its table of settings): 24 heads, width 3072."""
    return Architecture(
        name="gpt-4b",
        family="gpt",
        layers=layers,
        hidden=3072,
        heads=24,
        ffn=4 * 3072,
        vocab=vocab,
        gated=False,
        norm="layer",
        positions="learned",
        max_positions=SEQ,
    )


def scenario(
    vocab: int, knobs: dict[str, object] | None, *, micro_batches: int, devices: int = STAGES, **machine: object
) -> Scenario:
    cluster = Cluster.parse({"device": "a100-sxm-80gb", "count": devices, **machine})
    job = Job(seq_len=SEQ, global_batch_tokens=SEQ * micro_batches)
    used = () if knobs is None else (techniques.create(NAME, **knobs),)
    return Scenario(model(vocab), cluster, job, find_stack("megatron"), used)


def layout(**changes: object) -> Layout:
    return Layout.model_validate({"data_parallel": 1, "pipeline_parallel": STAGES, **changes})


def step(
    vocab: int, knobs: dict[str, object] | None = None, *, micro_batches: int = 32, **machine: object
) -> StepPrediction:
    return predict(scenario(vocab, knobs, micro_batches=micro_batches, **machine), [layout()])[0]


def gain(vocab: int, knobs: dict[str, object] | None = None, **machine: object) -> float:
    return step(vocab, **machine).step_s / step(vocab, knobs or {}, **machine).step_s


def seconds(found: StepPrediction, kind: str) -> float:
    """Time alone of all tasks of a kind."""
    costs, tasks = found.program.costs, found.program.tasks
    return sum(float(costs[tasks[i].cost].seconds[0]) for i in found.program.find(kind))


def in_flight(found: StepPrediction, stage: int) -> int:
    """Forward passes of a stage whose backward pass has not been, at most."""
    order = [found.program.tasks[i].action.kind for i in found.program.lanes[Lane(stage, "compute")]]
    held = np.cumsum([{"forward": 1, "backward": -1}.get(kind, 0) for kind in order])
    return int(held.max())


def test_the_gain_grows_with_the_vocabulary() -> None:
    gains = [gain(vocab) for vocab in (32_768, 65_536, 131_072, 262_144)]
    assert 1.0 < gains[0] < gains[1] < gains[2] < gains[3]
    # An output layer of w layers beside 4 per stage: balanced stages have 4 + w / 8, and layers fill the pipe.
    before = step(262_144)
    head, layer = (
        float(before.priced.forward[name].seconds[0] + before.priced.backward[name].seconds[0])
        for name in ("head", "layer")
    )
    assert 1.7 < gains[3] < (4 + head / layer) / (4 + head / layer / STAGES) * 1.01


def test_a_tiny_vocabulary_has_nothing_to_balance() -> None:
    assert gain(512) < 1.0
    assert gain(512, {"barriers": 1}) < 1.0


def test_stages_end_up_alike() -> None:
    before, after = step(262_144), step(262_144, {})
    program, timeline = after.program, after.timeline
    lanes = [program.lanes[Lane(stage, "compute")] for stage in range(STAGES)]
    busy_s = np.array([(timeline.end_s[lane] - timeline.start_s[lane]).sum() for lane in lanes])
    assert np.ptp(busy_s) < 0.01 * busy_s.mean()
    # Idle only while the pipeline fills and empties, by passes of layers alone: the shares run on all stages at once.
    layers_s = 4 * float(after.priced.forward["layer"].seconds[0] + after.priced.backward["layer"].seconds[0])
    assert float(timeline.makespan_s[0]) < 1.02 * (busy_s.mean() + (STAGES - 1) * layers_s)
    assert before.bubble_fraction > 0.5


@pytest.mark.parametrize("barriers", [1, 2])
def test_the_work_of_the_output_layer_is_conserved(barriers: int) -> None:
    before, after = step(262_144), step(262_144, {"barriers": barriers})
    whole = 32 * float(before.priced.forward["head"].seconds[0] + before.priced.backward["head"].seconds[0])
    rest = 32 * float(after.priced.forward["head"].seconds[0] + after.priced.backward["head"].seconds[0])
    shares = sum(seconds(after, kind) for kind in SHARES)
    # Smaller products are a little less efficient, never more; the early gradient of one barrier costs a little extra.
    assert whole < shares + rest < 1.05 * whole
    layers = [seconds(found, "forward") + seconds(found, "backward") for found in (before, after)]
    embedding = 32 * float(
        before.priced.forward["embedding"].seconds[0] + before.priced.backward["embedding"].seconds[0]
    )
    left = 32 * float(after.priced.forward["embedding"].seconds[0] + after.priced.backward["embedding"].seconds[0])
    assert layers[0] - whole - embedding == pytest.approx(layers[1] - rest - left, rel=1e-3)


def test_parameters_are_conserved_and_lie_evenly() -> None:
    before, after = step(262_144), step(262_144, {})
    resident = [np.array([float(found.program.resident[s][0]) for s in range(STAGES)]) for found in (before, after)]
    assert resident[1].sum() == pytest.approx(resident[0].sum(), rel=1e-12)
    assert resident[1].std() < 1e-9 * resident[1].mean()
    assert resident[0].max() > 1.5 * resident[0].min()
    optimizers = [seconds(found, "optimizer") for found in (before, after)]
    assert optimizers[1] == pytest.approx(optimizers[0], rel=1e-3)  # but for the gaps between kernels
    assert after.peak_bytes < before.peak_bytes
    assert after.ledger(own_machine=False).peak_bytes == pytest.approx(after.peak_bytes, rel=1e-9)


@pytest.mark.parametrize("barriers", [1, 2])
def test_each_barrier_keeps_one_more_micro_batch(barriers: int) -> None:
    # Figure 10 of the paper: activations of p + 2 micro-batches with two barriers, of p + 1 with one.
    found = step(32_768, {"barriers": barriers})
    assert [in_flight(found, stage) for stage in range(STAGES)] == [STAGES - s + barriers for s in range(STAGES)]


def test_activation_memory_may_cost_more_than_balancing_saves() -> None:
    # 32k entries: the paper's table 1 has 14.86 GB before, 15.63 with two barriers, and less than that with one.
    before, two, one = step(32_768), step(32_768, {}), step(32_768, {"barriers": 1})
    assert before.peak_bytes < two.peak_bytes
    assert one.peak_bytes < two.peak_bytes


def test_the_input_layer_divides_badly() -> None:
    # The paper measures 0.40 of linear scaling over 8 devices: everyone writes hidden states for every token.
    before, after = step(131_072), step(131_072, {})
    whole, rest = (
        found.priced.forward["embedding"].seconds[0] + found.priced.backward["embedding"].seconds[0]
        for found in (before, after)
    )
    shares = (seconds(after, "embedding-forward") + seconds(after, "embedding-backward")) / 32
    assert 0.1 < float(whole - rest) / shares < 0.6


def test_barriers_that_cannot_hide_lose() -> None:
    slow: dict[str, object] = {"scaleup_domain": 1, "devices_per_node": 1, "scaleout_bandwidth": 2e8}
    assert gain(32_768, {}, **slow) < 1.0 < gain(32_768)


@settings(deadline=None, max_examples=12)
@given(micro_batches=st.integers(1, 24), barriers=st.sampled_from([1, 2]), vocab=st.sampled_from([512, 262_144]))
def test_analytic_equals_played(micro_batches: int, barriers: int, vocab: int) -> None:
    program = step(vocab, {"barriers": barriers}, micro_batches=micro_batches).program
    expected = evaluate(program, contention=False)
    played = play(program, contention=False)
    assert np.allclose(expected.end_s, played.timeline.end_s, rtol=1e-9, atol=0.0)


def test_layouts_predicted_together_are_as_alone() -> None:
    where = [
        layout(pipeline_parallel=4, data_parallel=2),
        layout(pipeline_parallel=2, tensor_parallel=4),
        layout(pipeline_parallel=2, tensor_parallel=2, data_parallel=2),
        layout(),
    ]
    one = scenario(131_072, {}, micro_batches=16)
    together = predict(one, where)
    for place, found in zip(where, together, strict=True):
        alone = predict(one, [place])[0]
        assert found.step_s == pytest.approx(alone.step_s, rel=1e-6)
        assert found.peak_bytes == pytest.approx(alone.peak_bytes, rel=1e-12)


def test_without_it_nothing_of_it_is_there() -> None:
    before = step(131_072)
    assert step(131_072).step_s == before.step_s
    assert not any(before.program.find(kind) for kind in SHARES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pipeline_parallel": 1, "data_parallel": 8}, "vocabulary-parallelism: needs pipeline_parallel of 2 or more"),
        ({"schedule": "gpipe"}, "needs schedule 1f1b, and the layout has schedule gpipe"),
        ({"schedule": "interleaved-1f1b", "virtual_stages": 2}, "needs schedule 1f1b"),
    ],
)
def test_says_what_it_needs(changes: dict[str, object], said: str) -> None:
    with pytest.raises(FroudeError, match=said):
        predict(scenario(32_768, {}, micro_batches=32), [layout(**changes)])


def test_unequal_stages_are_refused() -> None:
    uneven = Scenario(
        model(32_768, layers=30),
        Cluster.parse({"device": "a100-sxm-80gb", "count": STAGES}),
        Job(seq_len=SEQ, global_batch_tokens=SEQ * 16),
        find_stack("megatron"),
        (techniques.create(NAME),),
    )
    with pytest.raises(FroudeError, match="pipeline_parallel 8 does not divide 30 layers"):
        predict(uneven, [layout()])


def test_three_barriers_are_not_offered() -> None:
    with pytest.raises(FroudeError, match="barriers"):
        techniques.create(NAME, barriers=3)


def test_compare_on_the_command_line(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "model: meta-llama/Llama-3.1-8B\ncluster: a100-sxm-80gb:8\n"
        "job: {seq_len: 4096, global_batch_tokens: 131072}\n"
        "layout: {data_parallel: 1, pipeline_parallel: 8}\n"
    )
    result = CliRunner().invoke(app, ["compare", str(plan), "--with", NAME, "--json"])
    assert result.exit_code == 0, result.output
    assert '"gain"' in result.output
