"""Priorities that preempt and are drawn anew, and what swapping costs: FastSwitch and the engine it is against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.serving.api import simulate_serve
from froude.serving.deployment import COPY_LAUNCH_S, build_deployment
from froude.serving.host_memory import HostMemory
from froude.serving.iteration import AffineIterationTime
from froude.serving.outcome import Outcome, Swap
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.router import ROUTERS
from froude.serving.simulator import jump
from froude.serving.stepping import step

times = st.builds(AffineIterationTime, st.integers(1, 50), st.integers(0, 5), st.integers(0, 3), st.integers(0, 2))
requests = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 40), st.integers(0, 2000)),
        st.integers(1, 60),
        st.integers(1, 60),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=20,
)
swaps = st.builds(
    Swap,
    st.integers(0, 60),
    st.integers(0, 30),
    st.integers(0, 9),
    st.integers(0, 90),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
)


def build(rows: list[tuple[int, int, int, int]], unit: int | None = None) -> list[Sequence]:
    now, out = 0, []
    for i, (gap, prompt, output, priority) in enumerate(rows):
        now += gap
        shared = tuple(100 * priority + k for k in range(prompt // unit)) if unit else ()
        out.append(Sequence(i, now, prompt, output, priority=float(priority), prefix=shared))
    return out


def same(rows, scheduler, time, blocks, block_tokens=4, **how) -> Outcome:
    unit = how.get("prefix_unit_tokens")
    jumped = jump(build(rows, unit), scheduler, time, blocks, block_tokens, **how)
    assert jumped == step(build(rows, unit), scheduler, time, blocks, block_tokens, **how)
    return jumped


@settings(max_examples=400, deadline=None)
@given(
    rows=requests,
    time=times,
    blocks=st.integers(6, 60),
    block_tokens=st.sampled_from([1, 3, 4, 16]),
    max_seqs=st.integers(1, 8),
    budget=st.integers(0, 40),
    watermark=st.sampled_from([0.0, 0.1]),
    draws=st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 0.9]), st.integers(0, 3)),
    swap=st.one_of(st.none(), swaps),
    replicas=st.integers(1, 2),
    prefixes=st.booleans(),
)
def test_priorities_drawn_anew_jump_as_they_step(
    rows, time, blocks, block_tokens, max_seqs, budget, watermark, draws, swap, replicas, prefixes
):
    period, keep, seed = draws
    scheduler = SCHEDULERS.create(
        "preemptive-priority",
        max_batched_tokens=max_seqs + budget,
        max_seqs=max_seqs,
        watermark=watermark,
        period=period,
        keep=keep,
        seed=seed,
    )
    how = {"prefix_unit_tokens": 2 * block_tokens} if prefixes else {"swap": swap}
    same(rows, scheduler, time, blocks, block_tokens, replicas=replicas, router=ROUTERS.create("round-robin"), **how)


def test_the_urgent_run_and_the_others_give_way():
    """Two places. The third, more urgent than both, takes the place of the less urgent; iterations take 10."""
    scheduler = SCHEDULERS.create("preemptive-priority", max_seqs=2, max_batched_tokens=64, period=0, watermark=0.0)
    rows = [(0, 4, 6, 1), (0, 4, 6, 2), (25, 4, 2, 0)]
    outcome = same(rows, scheduler, AffineIterationTime(10, 0, 0), 99, swap=Swap(99, 0))
    assert outcome.preemptions == [0, 1, 0]
    assert outcome.first_ps == [10, 10, 40]
    # Prompts run alone: 30 to 40. The first goes on to 60 and 70; the second comes back at 50, with 3 tokens to go.
    assert outcome.finish_ps == [70, 80, 50]


def test_draws_move_the_favour_at_every_period():
    rows = [(0, 8, 60, 0)] * 8
    time = AffineIterationTime(10, 0, 0)

    def preempted(**knobs: float) -> int:
        scheduler = SCHEDULERS.create("preemptive-priority", max_seqs=2, max_batched_tokens=64, **knobs)
        return sum(same(rows, scheduler, time, 999, swap=Swap(999, 0)).preemptions)

    assert preempted(period=0) == 0
    assert preempted(period=20) < preempted(period=5)
    assert preempted(period=5, keep=0.9) < preempted(period=5)


@pytest.mark.parametrize("keep", [0.0, 0.9])
def test_draws_are_even_and_last_as_long_as_they_should(keep):
    scheduler = SCHEDULERS.create("preemptive-priority", keep=keep)
    requests = [Sequence(i, 0, 1, 1) for i in range(300)]
    drawn = np.array([[scheduler._ranks(epoch)(s)[0] for s in requests] for epoch in range(100)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.std() == pytest.approx(12**-0.5, abs=0.03)
    assert (drawn[1:] == drawn[:-1]).mean() == pytest.approx(keep, abs=0.01)
    assert abs(np.corrcoef(drawn[:, 1:].ravel(), drawn[:, :-1].ravel())[0, 1]) < 0.04


def test_copies_cost_launches_or_bytes_whichever_is_longer():
    single = Swap(99, block_ps=10, launch_ps=64)
    grouped = replace(single, group_blocks=20)
    assert (single.copy_ps(21), grouped.copy_ps(21)) == (21 * 64, 210)
    assert grouped.copy_ps(1) == 64
    assert replace(single, launch_ps=0).copy_ps(21) == grouped.copy_ps(21)


def test_what_was_copied_once_is_not_copied_again():
    """One place, two requests in turn every 4 iterations; with no time for computing, the rest is copies."""
    scheduler = SCHEDULERS.create("preemptive-priority", max_seqs=1, max_batched_tokens=64, period=4)
    rows, time = [(0, 40, 40, 0)] * 3, AffineIterationTime(1, 0, 0)
    again = same(rows, scheduler, time, 99, swap=Swap(99, 1000))
    kept = same(rows, scheduler, time, 99, swap=Swap(99, 1000, reuse=True))
    assert again.preemptions == kept.preemptions
    assert sum(kept.preemptions) > 2
    assert kept.busy_ps < 0.75 * again.busy_ps


def test_copies_give_way_where_host_memory_is_short():
    memory = HostMemory(Swap(10, block_ps=1, reuse=True))
    first, second = Sequence(0, 0, 22, 30), Sequence(1, 0, 22, 30)
    first.computed_tokens = second.computed_tokens = 22
    assert memory.leave(first, 6) == 6
    assert memory.leave(second, 6) is None  # no room: computed again
    assert memory.fetch(first, 4) == 6
    assert memory.kept == {0: 5}  # the sixth was not full
    first.computed_tokens = 27
    assert memory.leave(first, 7) == 2
    assert memory.fetch(first, 4) == 7
    assert memory.leave(second, 6) == 6  # in place of the copy
    assert memory.kept == {}
    assert memory.leave(first, 7) is None
    memory.drop(second)
    assert memory.free_blocks == 10


def test_copies_beside_an_iteration_are_hidden_as_far_as_it_lasts():
    scheduler = SCHEDULERS.create("preemptive-priority", max_seqs=1, max_batched_tokens=64, period=4)
    rows = [(0, 40, 40, 0)] * 3
    free, waiting, hidden = (
        same(rows, scheduler, AffineIterationTime(10**6, 0, 0), 99, swap=swap)
        for swap in (Swap(99, 0), Swap(99, 1000), Swap(99, 1000, overlap=True))
    )
    assert free.busy_ps == hidden.busy_ps < waiting.busy_ps


def test_fast_switch_on_the_catalogue():
    load = {"trace": "constant:in=1000,out=300", "requests": 60, "cluster": "a10:1", "rate": 2.0, "engine": "vllm-v0"}
    engine = {"scheduler": "preemptive-priority", "swap_space": 60.0}
    plain = simulate_serve("llama-3.1-8b", **load, **engine)
    swap = plain.deployment.swap
    assert swap is not None
    assert swap.launch_ps == round(64 * COPY_LAUNCH_S * 1e12)  # 32 layers, keys and values
    assert sum(plain.outcome.preemptions) > 0
    fast = simulate_serve("llama-3.1-8b", **load, **engine, techniques=["fast-switch"])
    assert fast.duration_s < plain.duration_s
    with pytest.raises(FroudeError, match="swap_space"):
        build_deployment("llama-3.1-8b", "a10:1", techniques=["fast-switch"])
    with pytest.raises(FroudeError, match="keep"):
        SCHEDULERS.create("preemptive-priority", keep=1.0)
