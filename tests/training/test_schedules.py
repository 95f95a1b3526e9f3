"""Schedules are orders of work; bubbles and memory are what comes out when they are played."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.program.evaluate import evaluate, peak_memory
from froude.timing.cost import Cost
from froude.training.build import Structure, build_program, compositions, split_layers
from froude.training.price import Priced
from froude.training.schedule import schedules
from froude.training.schedules.interleaved_1f1b import group_size

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
    name=st.sampled_from(["gpipe", "1f1b", "interleaved-1f1b"]),
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
