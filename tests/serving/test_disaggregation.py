"""Prompts and generation on workers of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.serving.api import simulate_serve
from froude.serving.deployment import build_deployment, kv_transfer
from froude.serving.disaggregation import Disaggregation, Transfer, parse_disaggregation
from froude.serving.iteration import AffineIterationTime
from froude.serving.outcome import Worker
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.router import ROUTERS
from froude.serving.simulator import jump_fleet
from froude.serving.stepping import step_fleet

LOAD = "lognormal:in=2000,out=150,cv=1"


def serve(rows, split, scheduler, blocks, transfer, play, router="least-outstanding", time=None, max_seqs=6, **how):
    now, trace = 0, []
    for i, (gap, prompt, output, *group) in enumerate(rows):
        now += gap
        prefix = tuple(1000 * (group[0] if group else 9 + i) + k for k in range(-(-prompt // 4)))
        trace.append(Sequence(i, now, prompt, output, client=prompt % 3, prefix=prefix))
    policy = SCHEDULERS.create(scheduler, max_batched_tokens=32, max_seqs=max_seqs)
    worker = Worker(policy, time or AffineIterationTime(10, 1, 1), blocks, 4)
    routers = (ROUTERS.create(router), ROUTERS.create(router))
    workers = [replace(worker, role="prefill")] * split[0] + [replace(worker, role="decode")] * split[1]
    conductor = Disaggregation(split[0], transfer, routers)
    return play(trace, workers, router=routers[0], conductor=conductor, **how), conductor


@settings(max_examples=400, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.just(0), st.integers(0, 300)), st.integers(1, 60), st.integers(1, 40), st.integers(0, 2)
        ),
        min_size=1,
        max_size=25,
    ),
    split=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scheduler=st.sampled_from(SCHEDULERS.names()),
    blocks=st.integers(18, 60),
    transfer=st.builds(Transfer, st.integers(0, 30), st.integers(0, 5), st.sampled_from([0, 1, 4]), st.integers(0, 2)),
    router=st.sampled_from(ROUTERS.names()),
    how=st.sampled_from([{}, {"concurrency": 3}, {"prefix_unit_tokens": 4}, {"max_seqs": 2}]),
)
def test_jumping_equals_stepping(rows, split, scheduler, blocks, transfer, router, how):
    stepped, one = serve(rows, split, scheduler, blocks, transfer, step_fleet, router, **how)
    jumped, two = serve(rows, split, scheduler, blocks, transfer, jump_fleet, router, **how)
    assert jumped == stepped
    assert one.summary() == two.summary()
    assert sum(ps >= 0 for ps in jumped.finish_ps) == len(rows) - jumped.rejected
    assert len(one.moved_ps) == sum(r[2] > 1 and jumped.finish_ps[i] >= 0 for i, r in enumerate(rows))


def test_by_hand():
    # A prompt of 8 in one iteration of 10 ps, then 5 + 2 * 8 ps on the link, then two more tokens.
    rows = [(0, 8, 3), (0, 8, 1)]
    done, _ = serve(rows, (1, 1), "vllm-v1", 20, Transfer(5, 2), jump_fleet, time=AffineIterationTime(10, 0, 0))
    assert done.first_ps == [10, 10]
    assert done.finish_ps == [10 + 21 + 20, 10]


def test_a_link_carries_one_request_at_a_time():
    rows, how = [(0, 8, 2), (0, 8, 2)], {"time": AffineIterationTime(10, 0, 0)}
    done, _ = serve(rows, (1, 1), "vllm-v1", 20, Transfer(0, 100), jump_fleet, **how)
    assert done.finish_ps == [10 + 800 + 10, 10 + 1600 + 10]


def test_the_network_carries_so_many_at_once():
    how = {"time": AffineIterationTime(10, 0, 0), "router": "round-robin"}
    rows = [(0, 8, 2), (0, 8, 2)]
    for at_once, last in ((0, 10 + 800 + 10), (2, 10 + 800 + 10), (1, 10 + 1600 + 10)):
        done, _ = serve(rows, (2, 2), "vllm-v1", 20, Transfer(0, 100, 0, at_once), jump_fleet, **how)
        assert done.finish_ps == [10 + 800 + 10, last]


def test_layers_cross_while_the_prompt_is_computed():
    # One prompt of 8 in 100 ps; its cache takes 80 ps to cross, the last of 4 layers 20.
    how = {"time": AffineIterationTime(100, 0, 0)}
    done, conductor = serve([(0, 8, 2)], (1, 1), "vllm-v1", 20, Transfer(0, 10, 4), jump_fleet, **how)
    assert conductor.moved_ps == [20] and done.finish_ps == [100 + 20 + 100]
    slow, conductor = serve([(0, 8, 2)], (1, 1), "vllm-v1", 20, Transfer(0, 100, 4), jump_fleet, **how)
    assert conductor.moved_ps == [800 - 100] and slow.finish_ps == [800 + 100]


def test_generation_without_room_holds_prompts_back():
    # The decode worker runs one sequence at a time, for 4 iterations each; a prefill pool has room for two prompts.
    rows, how = [(0, 8, 5)] * 4, {"time": AffineIterationTime(10, 0, 0), "max_seqs": 1}
    roomy, _ = serve(rows, (1, 1), "vllm-v1", 40, Transfer(0, 0), jump_fleet, **how)
    assert roomy.first_ps == [10, 20, 30, 40]
    tight, conductor = serve(rows, (1, 1), "vllm-v1", 4, Transfer(0, 0), jump_fleet, **how)
    assert tight.first_ps[:2] == [10, 20] and tight.first_ps[3] > 60
    assert conductor.summary()["parked_kv_utilisation"] == 1.0
    assert conductor.summary()["mean_parked_kv_utilisation"] > 0.5


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


def test_unlike_workers():
    how = {"disaggregate": "1:2", "prefill_tp": 2, "prefill_cluster": "h100-sxm:2"}
    built = build_deployment("llama-3.1-8b", "a100-sxm-80gb:2", **how)
    assert built.devices == 4 and [w.role for w in built.workers] == ["prefill", "decode", "decode"]
    assert built.workers[0].time is not built.workers[1].time
    # Between machines; the receiving side has the larger part for each device.
    assert kv_transfer(built).token_ps == round(131072 / built.cluster.scaleout_bandwidth * 1e12)
    found = simulate_serve("llama-3.1-8b", "a100-sxm-80gb:2", LOAD, rate=2.0, requests=50, **how).json()
    assert found["completed"] == 50 and found["transfer_s"]["p99"] > 0 and found["usd_per_million_output_tokens"] > 0


def test_layer_by_layer_shortens_the_pause():
    how = {"disaggregate": "1:1", "rate": 4.0, "requests": 100}
    pulled, sent = (
        simulate_serve("llama-3.1-8b", "h100-sxm:2", LOAD, transfer=f"{mode}:bandwidth=5", **how).json()
        for mode in ("pull", "layer-wise")
    )
    assert sent["transfer_s"]["p50"] < 0.7 * pulled["transfer_s"]["p50"]
    # vLLM's decode worker sends the first token, so clients wait for the cache; in 2023 the prefill worker did.
    assert sent["ttft_s"]["p50"] < pulled["ttft_s"]["p50"]
    old = simulate_serve("llama-3.1-8b", "h100-sxm:2", LOAD, transfer="pull:bandwidth=5", engine="vllm-v0", **how)
    fast = simulate_serve("llama-3.1-8b", "h100-sxm:2", LOAD, transfer="pull", engine="vllm-v0", **how)
    assert old.json()["ttft_s"]["p50"] == pytest.approx(fast.json()["ttft_s"]["p50"], rel=0.02)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"swap_space": 4.0}, "swap_space"),
        ({"failures": "mtbf=100"}, "failures"),
        ({"migrate": "every=1"}, "migrate"),
        ({"autoscale": "kubernetes-hpa"}, "autoscale"),
        ({"transfer": "push"}, "transfer"),
        ({"transfer": "pull:bandwidth=-1"}, "transfer"),
        ({"decode_router": "nobody"}, "router"),
        ({"prefill_tp": 3}, "3"),
    ],
)
def test_what_cannot_be_combined(more, says):
    with pytest.raises(FroudeError, match=says):
        build_deployment("llama-3.1-8b", "h100-sxm:8", disaggregate="2:6", **more)


@pytest.mark.parametrize("given", [{"transfer": "pull"}, {"decode_router": "round-robin"}])
def test_transfers_need_prefill_workers(given):
    with pytest.raises(FroudeError, match="needs prefill workers"):
        build_deployment("llama-3.1-8b", "h100-sxm:8", **given)


@pytest.mark.parametrize(("text", "says"), [("2", "PREFILL"), ("a:b", "PREFILL"), ("0:2", "at least one")])
def test_bad_splits(text, says):
    with pytest.raises(FroudeError, match=says):
        parse_disaggregation(text)


def test_too_few_devices():
    with pytest.raises(FroudeError, match="replicas"):
        build_deployment("llama-3.1-8b", "h100-sxm:4", disaggregate="2:6")
    with pytest.raises(FroudeError, match="replicas: 3 "):
        build_deployment("llama-3.1-8b", "h100-sxm:2", disaggregate="1:3", prefill_cluster="h100-sxm:1")
