"""Replicas that come and go."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.serving.api import simulate_serve
from froude.serving.autoscaling import Autoscaling, FleetObservation, ScalingRouter
from froude.serving.iteration import AffineIterationTime
from froude.serving.outcome import Worker
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.router import ROUTERS
from froude.serving.scalers.kubernetes_hpa import KubernetesHpa
from froude.serving.simulator import jump_fleet
from froude.serving.stepping import step_fleet

SECOND = 10**12


def serve(rows, scaling, router, scheduler, play, iteration_ps=SECOND):
    now, trace = 0, []
    for i, (gap, prompt, output) in enumerate(rows):
        now += gap * SECOND
        trace.append(Sequence(i, now, prompt, output))
    worker = Worker(
        SCHEDULERS.create(scheduler, max_batched_tokens=32, max_seqs=4), AffineIterationTime(iteration_ps, 7, 3), 40, 4
    )
    fleet = [worker] * scaling.most
    return play(trace, fleet, router=ScalingRouter(scaling, ROUTERS.create(router)))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=30),
    least=st.integers(1, 2),
    more=st.integers(1, 3),
    start=st.sampled_from([0.0, 5.0, 15.0, 37.0]),
    target=st.sampled_from([1.0, 2.0, 4.0]),
    router=st.sampled_from(ROUTERS.names()),
    scheduler=st.sampled_from(SCHEDULERS.names()),
)
def test_jumping_equals_stepping(rows, least, more, start, target, router, scheduler):
    scaling = Autoscaling("kubernetes-hpa", least, least + more, start, target)
    assert serve(rows, scaling, router, scheduler, jump_fleet) == serve(rows, scaling, router, scheduler, step_fleet)


def test_a_burst_is_met_after_the_start():
    rows = [(1, 8, 30)] * 80
    slow, fast, full = (
        serve(rows, Autoscaling("kubernetes-hpa", low, 4, start, 2.0), "least-outstanding", "vllm-v1", jump_fleet)
        for low, start in ((1, 60.0), (1, 0.0), (4, 0.0))
    )
    assert max(full.finish_ps) <= max(fast.finish_ps) < max(slow.finish_ps)
    assert sum(full.finish_ps) < sum(fast.finish_ps) < sum(slow.finish_ps)


def test_idle_replicas_are_given_back():
    rows = [(1, 8, 30)] * 40 + [(40, 8, 2)] * 30
    scaled = serve(rows, Autoscaling("kubernetes-hpa", 1, 4, 10.0, 2.0), "least-outstanding", "vllm-v1", jump_fleet)
    end = max(scaled.finish_ps)
    assert end < scaled.replica_ps < 0.8 * 4 * end


def test_the_documented_algorithm():
    scaler = KubernetesHpa(target=10.0)
    assert scaler.next_change_s(0.0) == 15.0 and scaler.next_change_s(15.0) == 30.0
    assert scaler.observe(FleetObservation(15.0, 2, 0, 21)) == 2  # within the tolerance
    assert scaler.observe(FleetObservation(30.0, 2, 0, 45)) == 5
    assert scaler.observe(FleetObservation(45.0, 2, 3, 10)) == 5  # not yet down
    assert scaler.observe(FleetObservation(400.0, 5, 0, 10)) == 1


def test_fewer_replicas_by_night():
    """Cheaper than the most replicas all the time, slower than them."""
    how = {"rate": 20.0, "arrivals": "diurnal:peak=10,period=600", "requests": 12_000}
    load = ("llama-3.1-8b", "h100-sxm:4", "lognormal:in=1000,out=200,cv=1")
    scaled = simulate_serve(*load, autoscale="kubernetes-hpa:min=1,max=4,start=30,target=40", **how).json()
    full = simulate_serve(*load, replicas=4, **how).json()
    assert 1 < scaled["mean_replicas"] < 3.9 and full["mean_replicas"] == 4
    assert scaled["usd_per_million_output_tokens"] < full["usd_per_million_output_tokens"]
    assert scaled["e2e_s"]["p90"] > full["e2e_s"]["p90"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kubernetes-hpb", "kubernetes-hpa"),
        ("kubernetes-hpa:mn=1", "min"),
        ("kubernetes-hpa:min=3,max=2", "<= max"),
    ],
)
def test_bad_scaling(text, says):
    with pytest.raises(FroudeError, match=says):
        Autoscaling.parse(text)
