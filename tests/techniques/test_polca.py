"""POLCA: what it does by hand on two servers, that work is conserved under it, and a row with 30% more servers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.planning.row import Row, RowRun, row_program, simulate_row
from froude.program.controller import Controller, PowerObservation, SetClocks
from froude.program.play import play
from froude.program.program import Action, Lane, Program
from froude.serving.controller import power_controllers
from froude.serving.controllers.polca import Polca
from froude.timing.cost import Cost

# A row whose forty servers peak at three quarters of what was provisioned, as the paper found of production rows (79%).
ROW = Row(servers=40, budget_servers=40, provisioned_w=4200.0, load=0.4, duration_s=600.0)


def linear(used: Mapping[str, float], clock: float) -> float:
    return 100.0 + 100.0 * used.get("compute", 0.0)


def two_servers(seconds: float = 10.0, compute: float = 1.0, memory: float = 0.0) -> Program:
    program = Program(costs={"work": Cost(seconds, {"compute": compute, "memory": memory})})
    for device in (0, 1):
        program.add(Lane(device, "engine"), "work", Action("prefill"))
    return program


def ends(program: Program, controller: Polca) -> list[float]:
    return [float(t) for t in play(program, controllers=[controller], power=linear).timeline.end_s[:, 0]]


def test_by_hand() -> None:
    # Both draw 400 W of 440 W: 91%, above the second threshold. The first reading, at 0 s, commands 1,110 MHz for the
    # low-priority server; that acts at 2 s. Then the row draws 379 W, 86%: above the release threshold, below the next.
    # At 10 s the other server is done, the row draws 279 W, 63%, and the release acts at 12 s.
    clock = 1110.0 / 1410.0
    polca = Polca(budget_w=440.0, low_priority=frozenset({1}), telemetry_s=1.0, lag_s=2.0)
    played = play(two_servers(), controllers=[polca], power=linear)
    assert played.timeline.end_s[0, 0] == pytest.approx(10.0)
    assert played.timeline.end_s[1, 0] == pytest.approx(12.0 + (10.0 - 2.0 - 10.0 * clock))
    assert played.clocks == [(2.0, 1, clock), (12.0, 1, 1.0)]
    energy = 2.0 * 200.0 + 10.0 * (100.0 + 100.0 * clock) + (10.0 - 2.0 - 10.0 * clock) * 200.0
    assert played.energy_j[1] == pytest.approx(energy)


def test_memory_bound_work_is_not_slowed() -> None:
    polca = Polca(budget_w=305.0, low_priority=frozenset({1}), telemetry_s=1.0, lag_s=0.0)
    program = two_servers(compute=0.4, memory=0.9)
    assert ends(program, polca) == pytest.approx([10.0, 10.0])
    assert polca._level > 0


def test_high_priority_is_touched_last() -> None:
    polca = Polca(budget_w=420.0, low_priority=frozenset({1}), telemetry_s=1.0, lag_s=0.0)
    played = play(two_servers(), controllers=[polca], power=linear)
    first = {device: next(t for t, d, _ in played.clocks if d == device) for device in (0, 1)}
    assert first[1] < first[0]
    assert (first[0], 0, 1305.0 / 1410.0) in played.clocks
    assert polca.brakes == 0


def test_above_the_budget_the_brake_stops_everyone() -> None:
    polca = Polca(budget_w=390.0, low_priority=frozenset({1}), telemetry_s=1.0, brake_lag_s=5.0)
    played = play(two_servers(), controllers=[polca], power=linear)
    assert polca.brakes >= 1
    assert played.clocks[:2] == [(5.0, 0, 288.0 / 1410.0), (5.0, 1, 288.0 / 1410.0)]


def test_well_below_the_thresholds_nothing_happens() -> None:
    polca = Polca(budget_w=1000.0, low_priority=frozenset({1}), telemetry_s=1.0)
    played = play(two_servers(), controllers=[polca], power=linear)
    assert not played.clocks


@given(st.floats(300.0, 800.0), st.floats(0.0, 9.0), st.floats(0.3, 5.0))
@settings(deadline=None, max_examples=40)
def test_work_is_conserved(budget: float, lag: float, period: float) -> None:
    polca = Polca(budget_w=budget, low_priority=frozenset({1}), telemetry_s=period, lag_s=lag)
    played = play(two_servers(), controllers=[polca], power=linear)
    for device in (0, 1):
        end = float(played.timeline.end_s[device, 0])
        done, now, clock = 0.0, 0.0, 1.0
        for at, changed, fraction in [*played.clocks, (end, device, 1.0)]:
            if changed == device and at <= end:
                done, now, clock = done + clock * (at - now), at, fraction
        assert done == pytest.approx(10.0)


@given(st.lists(st.floats(0.0, 1.2), min_size=1, max_size=40))
def test_always_says_when_it_looks_next(shares: list[float]) -> None:
    polca = Polca(budget_w=100.0, low_priority=frozenset({1}), telemetry_s=2.0, lag_s=3.0)
    now = 0.0
    for share in shares:
        polca.observe(PowerObservation(now, {0: 50.0 * share, 1: 50.0 * share}))
        after = polca.next_change_s(now)
        assert now < after <= now + 2.0
        now = after


def test_registered_with_checked_knobs() -> None:
    assert isinstance(power_controllers.create("polca", budget_w=1e5), Polca)
    with pytest.raises(FroudeError, match="budget_w: -1 is not valid"):
        power_controllers.create("polca", budget_w=-1)


def capped(row: Row, **knobs: float) -> tuple[RowRun, Polca]:
    polca = Polca(budget_w=row.budget_w, low_priority=row.low_priority, **knobs)
    return simulate_row(row, polca), polca


def test_without_more_servers_nothing_is_capped() -> None:
    free, (run, polca) = simulate_row(ROW), capped(ROW)
    assert run.capped_s == 0.0 and polca.brakes == 0
    for server, latency in free.latency_s.items():
        np.testing.assert_allclose(run.latency_s[server], latency)


def test_thirty_per_cent_more_servers_stay_in_the_budget_and_cost_high_priority_little() -> None:
    row = ROW.model_copy(update={"servers": 52})
    free, (run, polca) = simulate_row(row), capped(row)
    assert run.capped_s > 0.0
    assert polca.brakes == 0
    assert run.peak_share <= 1.0
    assert run.mean_share < free.mean_share
    high, low = (
        float(np.median(run.of_priority(low=which)) / np.median(free.of_priority(low=which))) for which in (False, True)
    )
    assert 1.0 <= high < 1.01
    assert 1.0 <= low < 1.05


def test_with_peak_draw_as_nameplate_there_is_no_room() -> None:
    tight = ROW.model_copy(update={"provisioned_w": 3200.0, "servers": 52, "duration_s": 200.0})
    _, polca = capped(tight)
    assert polca.brakes > 0


def test_more_servers_change_nothing_for_the_others() -> None:
    from froude.machines.cluster import parse_cluster

    cluster = parse_cluster(ROW.server)
    few, _ = row_program(ROW.model_copy(update={"servers": 2}), cluster)
    more, _ = row_program(ROW.model_copy(update={"servers": 3}), cluster)
    assert {key: more.costs[key].seconds for key in few.costs} == {k: c.seconds for k, c in few.costs.items()}


def test_another_controller_drives_the_same_row() -> None:
    class Always(Controller[PowerObservation, SetClocks]):
        """Half clock from the start."""

        name = "always"
        done = False

        def observe(self, observation: PowerObservation) -> SetClocks:
            self.done = True
            return SetClocks(dict.fromkeys(observation.power_w, 0.5))

        def next_change_s(self, now_s: float) -> float:
            return float("inf") if self.done else now_s

    row = ROW.model_copy(update={"servers": 2, "duration_s": 200.0})
    slow, fast = simulate_row(row, Always()), simulate_row(row)
    assert np.median(slow.of_priority(low=False)) > 1.1 * np.median(fast.of_priority(low=False))
    assert slow.mean_share < fast.mean_share
