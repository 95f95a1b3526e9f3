"""Iteration times of pipelines, groups and drafting: exactly affine (so jumping is stepping), and of the right size."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.serving.api import simulate_serve
from froude.serving.deployment import build_deployment
from froude.serving.techniques.speculative import Speculative

LOAD = "lognormal:in=600,out=60,cv=1"
WAYS = [
    {"pipeline_parallel": 2},
    {"pipeline_parallel": 3, "engine": "sglang"},
    {"tensor_parallel": 2, "pipeline_parallel": 2, "engine": "vllm-async"},
    {"model": "qwen3-30b-a3b", "tensor_parallel": 1, "data_parallel": 3, "expert_parallel": 3},
    {"speculative": "draft=llama-3.2-1b,k=3,acceptance=0.6"},
    {"speculative": "draft=llama-3.2-1b,k=5,acceptance=0.9", "engine": "tensorrt-llm"},
    {"speculative": "draft=own,k=3,acceptance=0.7", "engine": "tensorrt-llm"},
]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: ",".join(f"{k}={v}" for k, v in way.items()))
def built(request):
    return build_deployment(**{"model": "llama-3.1-8b", "cluster": "h100-sxm:4", **request.param})


@settings(max_examples=150, deadline=None)
@given(
    decoding=st.integers(0, 70),
    context=st.integers(0, 100_000),
    prompts=st.lists(st.tuples(st.integers(1, 900), st.integers(0, 5000)), max_size=4),
    ahead=st.integers(1, 500),
)
def test_pieces_are_affine(built, decoding, context, prompts, ahead):
    if not decoding and not prompts:
        return
    context = context + decoding if decoding else 0
    first, slope, valid = built.time.segment(decoding, context, prompts)
    j = min(ahead, valid - 1)
    later = [(count, prefix + j * count) for count, prefix in prompts]
    assert built.time.segment(decoding, context + j * decoding, later)[0] == first + slope * j
    assert slope >= 0 and valid >= 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(f"{k}={v}" for k, v in way.items()))
def test_jumping_is_stepping(way):
    how = {"model": "llama-3.1-8b", "cluster": "h100-sxm:4", "trace": LOAD, "rate": 20.0, "requests": 60, **way}
    jumped, stepped = simulate_serve(**how), simulate_serve(**how, stepping=True)
    assert jumped.outcome.first_ps == stepped.outcome.first_ps
    assert jumped.outcome.finish_ps == stepped.outcome.finish_ps


def test_even_micro_batches_leave_no_bubble():
    one = build_deployment("llama-3.1-8b", "h100-sxm:1", engine="vllm-async").time
    two = build_deployment("llama-3.1-8b", "h100-sxm:2", engine="vllm-async", pipeline_parallel=2).time
    half, both = one.device(200, 200_000, ())[0], two.segment(400, 400_000, ())[0]
    assert half < both < 1.02 * half  # a round takes what one micro-batch takes in all layers, and the hops


def test_a_prompt_in_one_micro_batch_stops_the_others():
    two = build_deployment("llama-3.1-8b", "h100-sxm:2", engine="vllm-async", pipeline_parallel=2).time
    alone, pair = two.segment(0, 0, [(4096, 0)])[0], two.segment(0, 0, [(4096, 0), (4096, 0)])[0]
    assert alone <= pair < 1.01 * alone


def test_a_pipeline_holds_more_cache():
    one, two = (build_deployment("llama-3.1-8b", "h100-sxm:2", pipeline_parallel=p) for p in (1, 2))
    assert two.devices == 2 and two.pool.tokens > 2 * one.pool.tokens


def test_expected_tokens_of_a_step():
    """Equation 1 of Leviathan et al.: figure 2 has 3.36 tokens for k = 4 at 0.8."""
    assert Speculative("m", 4, 0.8).tokens_per_step == pytest.approx(3.3616)
    assert Speculative("m", 4, 0.0).tokens_per_step == 1.0


def test_drafts_help_when_they_are_accepted_and_batches_are_small():
    def tpot(concurrency, acceptance=None):
        more = {} if acceptance is None else {"speculative": f"draft=llama-3.2-1b,k=4,acceptance={acceptance}"}
        load = {"concurrency": concurrency, "requests": 4 * concurrency, "tensor_parallel": 4}
        found = simulate_serve("llama-3.1-70b", "h100-sxm:4", "constant:in=500,out=200", **load, **more)
        return found.json()["tpot_s"]["mean"]

    plain, few, most = tpot(1), tpot(1, 0.0), tpot(1, 0.9)
    assert most < 0.5 * plain < plain < few
    assert tpot(256, 0.7) / tpot(256) > 1.5 * tpot(1, 0.7) / plain  # checking is not free where products are full


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"pipeline_parallel": 99}, "1 to 32 layers"),
        ({"speculative": "k=4"}, "names no drafting model"),
        ({"speculative": "draft=llama-3.2-1b,acceptance=1"}, "below 1"),
        ({"speculative": "draft=llama-3.2-1b,depth=1"}, "depth"),
        ({"speculative": "draft=llama-3.2-1b", "pipeline_parallel": 2}, "cannot be combined"),
    ],
)
def test_what_cannot_be(how, says):
    with pytest.raises(FroudeError, match=says):
        build_deployment("llama-3.1-8b", "h100-sxm:4", **how)
