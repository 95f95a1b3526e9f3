"""Schedules are orders of work; bubbles and memory are what comes out when they are played."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.catalogue import resolve
from froude.program.evaluate import evaluate, peak_memory
from froude.program.play import play
from froude.timing.cost import Cost
from froude.timing.stack import find_stack
from froude.training.build import Structure, build_program, compositions, split_layers
from froude.training.plan import Job, Layout
from froude.training.price import Priced
from froude.training.scenario import Scenario
from froude.training.schedule import schedules
from froude.training.schedules.interleaved_1f1b import group_size
from froude.training.search import parse_fixed, search
from froude.training.step import predict

FORWARD_S, BACKWARD_S, SAVED = 1.0, 2.0, 10.0


def priced(send_s: float = 0.0) -> Priced:
    """One second per layer forward, two backward, ten bytes kept; ends of the model are free."""
    nothing = {"embedding": Cost(0.0), "head": Cost(0.0)}
    zero = {"embedding": 0.0, "layer": 0.0, "head": 0.0}
    return Priced(
        forward={**nothing, "layer": Cost(FORWARD_S)},
        backward={**nothing, "layer": Cost(BACKWARD_S)},
        tensor_forward={},
        tensor_backward={},
        exchange_forward={},
        exchange_backward={},
        gather_forward={},
        gather_backward={},
        reduce={},
        update={},
        send=Cost(send_s),
        parameters=zero,
        expert_parameters=zero,
        saved_bytes={**zero, "layer": SAVED},
        transient_bytes=zero,
    )


def program(name: str, stages: int, micro_batches: int, chunks: int, send_s: float = 0.0):
    structure = Structure(
        stages=stages,
        chunks=chunks,
        micro_batches=micro_batches,
        schedule=schedules.create(name),
        pieces=compositions((1,) * (stages * chunks)),
        gather_each=None,
        reduce_each=None,
    )
    return build_program(structure, priced(send_s), {})


def bubble(name: str, stages: int, micro_batches: int, chunks: int = 1) -> float:
    """Idle time over work of one stage."""
    span = evaluate(program(name, stages, micro_batches, chunks)).makespan_s[0]
    work = micro_batches * chunks * (FORWARD_S + BACKWARD_S)
    return float(span / work - 1.0)


@given(
    name=st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b", "breadth-first"]),
    stages=st.integers(1, 6),
    rounds=st.integers(1, 4),
    chunks=st.integers(1, 3),
)
def test_every_pass_once_and_no_deadlock(name: str, stages: int, rounds: int, chunks: int) -> None:
    schedule = schedules.create(name)
    micro_batches = rounds * stages
    if schedule.objection(stages, micro_batches, chunks):
        return
    for order in schedule.order(stages, micro_batches, chunks):
        counts = Counter(order)
        assert set(counts.values()) == {1}
        assert len(order) == 2 * micro_batches * chunks
        for item in order:
            if item.kind == "backward":
                assert order.index(item._replace(kind="forward")) < order.index(item)
    assert evaluate(program(name, stages, micro_batches, chunks)).makespan_s[0] > 0


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("micro_batches", [8, 16, 64])
def test_bubble_of_1f1b_is_the_published_one(stages: int, micro_batches: int) -> None:
    # (p - 1) / m: Narayanan et al. 2021 (2104.04473), section 2.2
    assert bubble("1f1b", stages, micro_batches) == pytest.approx((stages - 1) / micro_batches)
    assert bubble("gpipe", stages, micro_batches) == pytest.approx((stages - 1) / micro_batches)


@pytest.mark.parametrize(("stages", "chunks"), [(2, 2), (4, 2), (4, 4), (8, 3)])
def test_interleaving_divides_the_bubble_by_the_chunks(stages: int, chunks: int) -> None:
    # (p - 1) / (v m), same section
    micro_batches = 4 * stages
    expected = (stages - 1) / (chunks * micro_batches)
    assert bubble("interleaved-1f1b", stages, micro_batches, chunks) == pytest.approx(expected)


def test_1f1b_keeps_as_many_micro_batches_as_there_are_stages_left() -> None:
    peaks = peak_memory(program("1f1b", 4, 16, 1))
    assert [float(peaks[s][0]) / SAVED for s in range(4)] == [4, 3, 2, 1]
    assert {float(p[0]) / SAVED for p in peak_memory(program("gpipe", 4, 16, 1)).values()} == {16}


def test_sending_costs_more_when_interleaved() -> None:
    def extra(name: str, chunks: int) -> float:
        free = evaluate(program(name, 4, 16, chunks)).makespan_s[0] / chunks
        return float(evaluate(program(name, 4, 16, chunks, send_s=0.05)).makespan_s[0] / chunks - free)

    assert extra("interleaved-1f1b", 4) > 0
    assert extra("1f1b", 1) > 0


@given(layers=st.integers(1, 130), pieces=st.integers(1, 130))
def test_layers_are_split_whole(layers: int, pieces: int) -> None:
    if pieces > layers:
        return
    counts = split_layers(layers, pieces)
    assert sum(counts) == layers
    assert len(counts) == pieces
    assert max(counts) - min(counts[:-1] or counts) <= 1  # the last one has the head and may have fewer
    assert counts[-1] <= max(counts)


def test_ends_count_as_layers_where_that_balances() -> None:
    assert split_layers(126, 16) == (7, *[8] * 14, 7)  # Llama 3.1 405B
    assert split_layers(70, 12) == (5, *[6] * 10, 5)  # BLOOM


def test_as_many_pieces_as_layers_and_ends_leave_the_ends_alone() -> None:
    """Megatron-Core's functional tests: 6 layers on 4 stages of 2, embedding and loss counted as layers."""
    assert split_layers(6, 8) == (0, *[1] * 6, 0)
    pieces = compositions(split_layers(6, 8))
    assert pieces[0] == {"layer": 0, "embedding": 1}
    assert pieces[-1] == {"layer": 0, "head": 1}
    with pytest.raises(FroudeError, match="virtual stages are more than"):
        split_layers(6, 9)


@settings(max_examples=40, deadline=None)
@given(stages=st.integers(2, 6), more=st.integers(0, 20), chunks=st.integers(2, 4))
def test_interleaving_takes_any_number_of_micro_batches(stages: int, more: int, chunks: int) -> None:
    micro_batches = stages + more
    for order in schedules.create("interleaved-1f1b").order(stages, micro_batches, chunks):
        passes = [(item.kind, item.micro_batch, item.chunk) for item in order]
        assert len(set(passes)) == len(passes) == 2 * micro_batches * chunks
    made = program("interleaved-1f1b", stages, micro_batches, chunks)
    span = evaluate(made).makespan_s[0]  # contradicting waits would be reported as a deadlock
    assert span >= micro_batches * chunks * (FORWARD_S + BACKWARD_S)


def test_groups_are_the_fewest_that_leave_no_short_one() -> None:
    assert group_size(4, 8) == 4
    assert group_size(4, 5) == 5
    assert group_size(4, 10) == 5  # not 4, 4 and 2
    assert group_size(4, 101) == 6


def state_sizes(zero_stage: int) -> Priced:
    """Weights of 4 bytes and gradients of 6 per layer, whole; gathered in 3 s and reduced in 5 s."""
    weights, gradients = {"layer": 4.0 * (zero_stage == 3)}, {"layer": 6.0 * (zero_stage >= 2)}
    ends = {"embedding": 0.0, "head": 0.0}
    whole = {"layer": weights["layer"] * 2 + gradients["layer"]}  # and those of the layer that is fetched ahead
    seconds = {name: Cost(0.0) for name in ends}
    return replace(
        priced(),
        gather_forward={**seconds, "layer": Cost(3.0)},
        gather_backward={**seconds, "layer": Cost(3.0)},
        reduce={**seconds, "layer": Cost(5.0)},
        transient_bytes={name: whole["layer"] if name == "layer" else weights["layer"] for name in ("layer", *ends)},
        whole_weights={**ends, **weights},
        whole_gradients={**ends, **gradients},
    )


def sharded(
    stages: int,
    micro_batches: int,
    chunks: int,
    *,
    zero_stage: int = 3,
    schedule: str = "breadth-first",
    overlap: bool = True,
    layers: int = 1,
):
    structure = Structure(
        stages=stages,
        chunks=chunks,
        micro_batches=micro_batches,
        schedule=schedules.create(schedule),
        pieces=compositions((layers,) * (stages * chunks)),
        gather_each="pass" if zero_stage == 3 else None,
        reduce_each="pass",
        shard_overlap=overlap,
        gradient_overlap=overlap,
    )
    return build_program(structure, state_sizes(zero_stage), {})


@pytest.mark.parametrize(("stages", "loops", "micro_batches"), [(2, 2, 2), (4, 1, 8), (4, 4, 4), (8, 3, 16)])
def test_breadth_first_has_the_published_bubble(stages: int, loops: int, micro_batches: int) -> None:
    # (PP - 1) / (loops x micro-batches): Lamy-Poirier 2022 (2211.05953)
    expected = (stages - 1) / (loops * micro_batches)
    assert bubble("breadth-first", stages, micro_batches, loops) == pytest.approx(expected)


def test_fewer_micro_batches_than_stages_leave_a_bubble_in_every_loop() -> None:
    assert bubble("breadth-first", 4, 2, 4) == pytest.approx(
        (2 + 2 * 3 + 1) / 8
    )  # waits of 2 between loops, 3 at the end


def test_with_one_loop_breadth_first_is_gpipe() -> None:
    assert schedules.create("breadth-first").order(4, 6, 1) == schedules.create("gpipe").order(4, 6, 1)


def test_breadth_first_keeps_all_micro_batches_and_interleaving_fewer() -> None:
    breadth = peak_memory(program("breadth-first", 4, 16, 2))
    depth = peak_memory(program("interleaved-1f1b", 4, 16, 2))
    assert {float(peak[0]) / SAVED for peak in breadth.values()} == {32}
    assert max(float(peak[0]) for peak in depth.values()) < 32 * SAVED


@settings(max_examples=40, deadline=None)
@given(
    stages=st.integers(1, 4),
    micro_batches=st.integers(1, 6),
    chunks=st.integers(1, 4),
    layers=st.sampled_from([1, 3, 10]),
    overlap=st.booleans(),
    zero_stage=st.sampled_from([2, 3]),
)
def test_each_chunk_is_gathered_and_reduced_once_a_stay(
    stages: int, micro_batches: int, chunks: int, layers: int, overlap: bool, zero_stage: int
) -> None:
    made = sharded(stages, micro_batches, chunks, layers=layers, overlap=overlap, zero_stage=zero_stage)

    def spent(kind: str, stage: int) -> float:
        return sum(float(np.sum(made.costs[made.tasks[i].cost].seconds)) for i in made.find(kind, stage))

    for stage in range(stages):
        # Forward through every chunk and back: the last one is still there when its backward passes begin.
        stays = 2 * chunks - 1 if zero_stage == 3 else 0
        assert spent("gather-weights", stage) == pytest.approx(3.0 * layers * stays)
        assert spent("reduce-gradients", stage) == pytest.approx(5.0 * layers * chunks)
        held = sum(
            (d.at_start + d.at_end) * made.sizes[d.size] for lane, order in made.lanes.items() if lane.device == stage
            for i in order for d in made.tasks[i].memory
        )  # fmt: skip
        assert held == 0.0
    played, evaluated = play(made).timeline.makespan_s[0], evaluate(made).makespan_s[0]
    assert played == pytest.approx(evaluated, rel=1e-6)


def test_whole_states_take_room_while_the_schedule_stays() -> None:
    # One stage, 4 chunks of 10 layers: two chunks of weights (one is being fetched), two of gradients (one is being
    # reduced), and what 3 micro-batches keep of the chunks that have not been back yet: all 4 when the way back begins.
    layers, chunks, micro_batches = 10, 4, 3
    peak = float(peak_memory(sharded(1, micro_batches, chunks, layers=layers))[0][0])
    turning = chunks * micro_batches * layers * SAVED + 2 * layers * 4.0 + layers * 6.0
    assert peak == pytest.approx(turning)
    alone = float(peak_memory(sharded(1, micro_batches, chunks, layers=layers, overlap=False))[0][0])
    assert alone == pytest.approx(turning - layers * 4.0)


def test_layered_accumulation_hides_what_every_pass_would_repeat() -> None:
    """One stage, 8 micro-batches: GPipe's order gathers and reduces with every pass."""
    layered = sharded(1, 8, 4, layers=2)
    plain = sharded(1, 8, 1, layers=8, schedule="gpipe")
    busy = 8 * 8 * (FORWARD_S + BACKWARD_S)
    assert evaluate(layered).makespan_s[0] < 1.15 * busy
    assert evaluate(plain).makespan_s[0] > 1.3 * busy


def test_with_one_micro_batch_nothing_is_saved() -> None:
    layered, plain = sharded(1, 1, 1, layers=8), sharded(1, 1, 1, layers=8, schedule="gpipe")
    reduced = [sum(t.action.kind == "reduce-gradients" for t in made.tasks) for made in (layered, plain)]
    assert reduced[0] == reduced[1]


def test_sharded_weights_go_with_a_pipeline_that_stays_with_its_chunks() -> None:
    scenario = Scenario(
        resolve("megatron/gpt-7.5b"),
        parse_cluster("a100-sxm-80gb:32"),
        Job(seq_len=2048, global_batch_tokens=2048 * 64),
        find_stack("megatron"),
    )
    layout = Layout(data_parallel=8, pipeline_parallel=4, zero_stage=3, schedule="breadth-first", virtual_stages=3)
    sharded, whole = predict(scenario, [layout, layout.model_copy(update={"zero_stage": 1})])
    assert sharded.peak_bytes < whole.peak_bytes
    assert "zero_stage 3" in str(
        scenario.objection(layout.model_copy(update={"schedule": "gpipe", "virtual_stages": 1}))
    )
    best = search(scenario, keep=3, fixed=parse_fixed("schedule=breadth-first,zero=3,tp=1,pp=4,recompute=full")).best
    assert {(found.layout.schedule, found.layout.zero_stage) for found in best} == {("breadth-first", 3)}
