"""Prompts and generation on workers of their own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.serving.api import simulate_serve
from froude.serving.deployment import build_deployment, kv_transfer
from froude.serving.disaggregation import Transfer, parse_disaggregation, serve_disaggregated
from froude.serving.iteration import AffineIterationTime
from froude.serving.outcome import Worker
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.router import ROUTERS
from froude.serving.simulator import jump_fleet
from froude.serving.stepping import step_fleet

LOAD = "lognormal:in=2000,out=150,cv=1"


def serve(rows, split, scheduler, blocks, transfer, play, router="least-outstanding", time=None):
    now, trace = 0, []
    for i, (gap, prompt, output) in enumerate(rows):
        now += gap
        trace.append(Sequence(i, now, prompt, output))
    worker = Worker(
        SCHEDULERS.create(scheduler, max_batched_tokens=32, max_seqs=6),
        time or AffineIterationTime(10, 1, 1),
        blocks,
        4,
    )
    routers = (ROUTERS.create(router), ROUTERS.create(router))
    return serve_disaggregated(trace, [worker] * split[0], [worker] * split[1], transfer, routers, play)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.one_of(st.just(0), st.integers(0, 300)), st.integers(1, 60), st.integers(1, 40)),
        min_size=1,
        max_size=25,
    ),
    split=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scheduler=st.sampled_from(SCHEDULERS.names()),
    blocks=st.integers(18, 60),
    transfer=st.builds(Transfer, st.integers(0, 30), st.integers(0, 5)),
    router=st.sampled_from(ROUTERS.names()),
)
def test_jumping_equals_stepping(rows, split, scheduler, blocks, transfer, router):
    stepped = serve(rows, split, scheduler, blocks, transfer, step_fleet, router)
    jumped = serve(rows, split, scheduler, blocks, transfer, jump_fleet, router)
    assert jumped == stepped


def test_by_hand():
    # A prompt of 8 in one iteration of 10 ps, then 5 + 2 * 8 ps on the link, then two more tokens.
    rows = [(0, 8, 3), (0, 8, 1)]
    done = serve(rows, (1, 1), "vllm-v1", 20, Transfer(5, 2), jump_fleet, time=AffineIterationTime(10, 0, 0))
    assert done.first_ps == [10, 10]
    assert done.finish_ps == [10 + 21 + 20, 10]


def test_a_link_carries_one_request_at_a_time():
    rows = [(0, 8, 2), (0, 8, 2)]
    done = serve(rows, (1, 1), "vllm-v1", 20, Transfer(0, 100), jump_fleet, time=AffineIterationTime(10, 0, 0))
    assert done.finish_ps == [10 + 800 + 10, 10 + 1600 + 10]


def test_generation_is_no_longer_disturbed_by_prompts():
    """What the papers are about: tokens come evenly, at the price of moving the cache."""
    how = {"rate": 8.0, "requests": 400, "seed": 2}
    apart = simulate_serve("llama-3.1-8b", "h100-sxm:2", LOAD, disaggregate="1:1", **how)
    together = simulate_serve("llama-3.1-8b", "h100-sxm:2", LOAD, replicas=2, **how)
    assert apart.json()["completed"] == 400
    assert apart.json()["tpot_s"]["p99"] < together.json()["tpot_s"]["p99"]


def test_the_link_is_the_clusters():
    near = build_deployment("llama-3.1-8b", "h100-sxm:8", disaggregate="2:6")
    far = build_deployment("llama-3.1-8b", "h100-sxm:16", disaggregate="4:12")
    assert kv_transfer(near).token_ps == round(131072 / near.cluster.scaleup_bandwidth * 1e12)
    assert kv_transfer(far).token_ps == round(131072 / far.cluster.scaleout_bandwidth * 1e12)


@pytest.mark.parametrize(("text", "says"), [("2", "PREFILL"), ("a:b", "PREFILL"), ("0:2", "at least one")])
def test_bad_splits(text, says):
    with pytest.raises(FroudeError, match=says):
        parse_disaggregation(text)


def test_too_few_devices():
    with pytest.raises(FroudeError, match="replicas"):
        build_deployment("llama-3.1-8b", "h100-sxm:4", disaggregate="2:6")
