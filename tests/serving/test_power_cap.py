"""Iterations of devices that may draw only so much."""

from __future__ import annotations

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.serving.api import simulate_serve
from froude.serving.deployment import build_deployment

LOAD = "lognormal:in=3000,out=80,cv=1"


def times(cap):
    """Under a cap, and without."""
    return tuple(build_deployment("llama-3.1-8b", "h100-sxm:1", power_cap=watts).time for watts in (cap, None))


def test_prompts_slow_down_and_decoding_hardly_does():
    capped, free = times(350.0)
    prompt, generation = (0, 0, [(2048, 0)]), (32, 32 * 1000, ())
    assert capped.segment(*prompt)[0] > 1.3 * free.segment(*prompt)[0]
    assert capped.segment(*generation)[0] < 1.02 * free.segment(*generation)[0]


def test_the_clock_is_the_highest_that_keeps_to_the_cap():
    capped, _ = times(450.0)
    for tokens in (1, 64, 300, 1024, 2048):
        clock, count = capped.clock(tokens), np.array([float(tokens)])
        assert clock == capped.power.min_clock or float(capped.watts(count, clock)[0]) <= 450.0
        if clock < 1.0:
            assert float(capped.watts(count, round(clock + 0.05, 2))[0]) > 450.0


def test_a_cap_at_the_limit_changes_nothing():
    capped, free = times(700.0)
    for work in ((0, 0, [(2048, 0)]), (7, 9000, ()), (7, 9000, [(300, 500)])):
        assert capped.segment(*work) == free.segment(*work)


def test_affine_in_the_context_whatever_the_clock():
    capped, _ = times(350.0)
    for prompts in ((), [(1500, 100)]):
        first, slope, valid = capped.segment(20, 5000, prompts)
        later = capped.segment(20, 5000 + 20, [(n, before + n) for n, before in prompts])
        assert valid > 1
        assert later[:2] == (first + slope, slope)


def test_jumping_equals_stepping_and_joules_follow():
    how = {"rate": 6.0, "requests": 60, "power_cap": 400.0}
    jumped = simulate_serve("llama-3.1-8b", "h100-sxm:1", LOAD, **how)
    stepped = simulate_serve("llama-3.1-8b", "h100-sxm:1", LOAD, stepping=True, **how)
    free = simulate_serve("llama-3.1-8b", "h100-sxm:1", LOAD, rate=6.0, requests=60)
    assert jumped.outcome == stepped.outcome
    assert jumped.json()["ttft_s"]["p50"] > free.json()["ttft_s"]["p50"]
    assert jumped.json()["joules_per_output_token"] < free.json()["joules_per_output_token"]
    assert any("400 W" in said for said in jumped.assumptions)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"power_cap": 100.0}, "lowest clock draws"),
        ({"power_cap": float("nan")}, "too low"),
        ({"power_cap": 400.0, "pipeline_parallel": 2}, "pp=1"),
    ],
)
def test_caps_that_cannot_be(how, says):
    with pytest.raises(FroudeError, match=says):
        build_deployment("llama-3.1-8b", "h100-sxm:2", **how)
