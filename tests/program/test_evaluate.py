"""The analytic evaluation against playing by events, on random programs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.machines.resource import Resource
from froude.program.evaluate import compile_levels, evaluate, peak_memory
from froude.program.play import play
from froude.program.program import Action, Lane, MemoryDelta, Program
from froude.timing.cost import Cost


@st.composite
def programs(draw, *, contended: bool) -> Program:
    """Random acyclic programs of a few devices, lanes and candidates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    devices, count, width = rng.integers(1, 4), int(rng.integers(1, 40)), int(rng.integers(1, 4))
    program = Program()
    for key in range(6):
        share = {}
        if contended:  # each kind of work uses some of the resources, as kernels and collectives do
            used = rng.random(3) < (0.9, 0.6, 0.4)
            share = {
                name: rng.uniform(0.05, 1.0, width)
                for name, on in zip(("compute", "memory", "scaleup"), used, strict=True)
                if on
            }
        program.costs[f"c{key}"] = Cost(rng.uniform(0.1, 2.0, width), share)
        program.sizes[f"s{key}"] = rng.uniform(1, 5, width)
    streams = ["compute", "network", "host"]
    for i in range(count):
        after = rng.choice(i, size=min(i, int(rng.integers(0, 3))), replace=False).tolist() if i else []
        lane = Lane(int(rng.integers(devices)), streams[int(rng.integers(3))])
        size = f"s{rng.integers(6)}"
        memory = (MemoryDelta(size, at_start=1, at_end=-1),) if lane.stream == "compute" else ()
        program.add(lane, f"c{rng.integers(6)}", Action("work", micro_batch=i), after, memory)
    return program


@given(programs(contended=False))
@settings(max_examples=60, deadline=None)
def test_without_contention_analytic_equals_events(program: Program) -> None:
    timeline = evaluate(program)
    for candidate in range(program.candidates):
        played = play(program, candidate=candidate)
        np.testing.assert_allclose(timeline.start_s[:, candidate], played.timeline.start_s[:, 0], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(timeline.end_s[:, candidate], played.timeline.end_s[:, 0], rtol=1e-9, atol=1e-9)
        peaks = peak_memory(program)
        for device, peak in played.peak_bytes.items():
            assert peak == pytest.approx(peaks[device][candidate])


def test_with_contention_the_makespan_agrees_within_five_percent() -> None:
    errors: list[float] = []

    @given(programs(contended=True))
    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    def compare(program: Program) -> None:
        timeline = evaluate(program)
        for candidate in range(program.candidates):
            played = play(program, candidate=candidate).timeline.makespan_s[0]
            errors.append(abs(timeline.makespan_s[candidate] / played - 1.0))

    compare()
    print(np.median(errors), np.quantile(errors, [0.9, 0.99]), max(errors))
    assert np.median(errors) < 0.02
    assert max(errors) < 0.05


def two_lanes(compute: float, network: float, share: float) -> Program:
    program = Program(costs={"c": Cost(compute, {"compute": 1.0}), "n": Cost(network, {"compute": share})})
    program.add(Lane(0, "compute"), "c", Action("forward"))
    program.add(Lane(0, "network"), "n", Action("reduce-gradients"))
    return program


def test_sharing_by_hand() -> None:
    # Both run at 1/1.25 until the short one is done at 1.25 s; the long one has 3 s of work left then.
    program = two_lanes(4.0, 1.0, 0.25)
    for timeline in (play(program).timeline, evaluate(program)):
        assert timeline.end_s[1, 0] == pytest.approx(1.25, rel=1e-3)
        assert timeline.end_s[0, 0] == pytest.approx(4.25, rel=1e-3)


def test_two_ways_of_sharing() -> None:
    # The network-bound task is held to 1/2 by its link. Under max-min sharing it then leaves compute to the other;
    # proportionally, all users of compute slow down by how much it is overcommitted.
    program = Program(costs={"c": Cost(4.0, {"compute": 0.9}), "n": Cost(4.0, {"compute": 0.4, "scaleout": 1.0})})
    program.resources["scaleout"] = Resource("scaleout", capacity=0.5)
    program.add(Lane(0, "compute"), "c", Action("forward"))
    program.add(Lane(0, "network"), "n", Action("reduce-gradients"))
    fair = play(program).timeline
    assert fair.end_s[0, 0] == pytest.approx(4.0 / (0.8 / 0.9))
    program.resources["compute"] = Resource("compute", sharing="proportional")
    alike = play(program).timeline
    assert alike.end_s[0, 0] == pytest.approx(4.0 * 1.3)
    assert alike.end_s[1, 0] == pytest.approx(8.0)


def test_no_contention_flag_gives_time_alone() -> None:
    program = two_lanes(4.0, 1.0, 0.25)
    assert evaluate(program, contention=False).makespan_s[0] == 4.0
    assert play(program, contention=False).timeline.makespan_s[0] == 4.0


def test_work_is_conserved_under_contention() -> None:
    program = two_lanes(3.0, 2.0, 1.0)
    assert play(program).timeline.makespan_s[0] == pytest.approx(5.0)


def test_deadlock_is_one_sentence() -> None:
    program = Program(costs={"c": Cost(1.0)})
    first = program.add(Lane(0, "compute"), "c", Action("forward"))
    second = program.add(Lane(1, "compute"), "c", Action("backward"), [first])
    program.tasks[first].after.append(second)
    with pytest.raises(FroudeError, match="deadlock"):
        compile_levels(program)
    with pytest.raises(FroudeError, match="deadlock"):
        play(program)


def test_insertion_keeps_lane_order() -> None:
    program = two_lanes(1.0, 1.0, 0.0)
    inserted = program.add(Lane(0, "compute"), "n", Action("extra"), position=0)
    assert program.lanes[Lane(0, "compute")] == [inserted, 0]
    assert play(program).timeline.start_s[0, 0] == pytest.approx(1.0)
