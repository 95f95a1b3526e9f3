"""What a budget decides beside its split, time to a target, and the pictures of both."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from froude.core.estimate import Estimate
from froude.laws.api import load
from froude.laws.curves import contours, iso_flop
from froude.planning.budget import plan_budget
from froude.planning.choices import _coefficients, _mixture, choose
from froude.planning.knee import TargetPoint, _on, fastest, knee
from froude.planning.pace import measure_pace
from froude.reports.budget import write_budget


@pytest.mark.parametrize(
    ("flops", "params", "tokens", "granularity"),
    # Krajewski et al. (2024), arXiv:2402.07871: compute-optimal models, 64 x 100M, 1B, 3B, 7B, 70B and 1T.
    [
        (2.95e18, 1e8, 4.37e9, 8),
        (1.93e20, 1e9, 28.94e9, 16),
        (1.41e21, 3e9, 72.9e9, 16),
        (6.46e21, 7e9, 137.6e9, 32),
        (4.16e23, 70e9, 941e9, 32),
        (4.97e25, 1e12, 7.94e12, 64),
    ],
)
def test_optimal_mixtures_are_those_published(flops: float, params: float, tokens: float, granularity: int) -> None:
    active, seen, fine = _mixture(_coefficients(load("fine-grained-moe"))[0], flops)
    assert fine == granularity
    assert active == pytest.approx(params, rel=0.2) and seen == pytest.approx(tokens, rel=0.25)


def test_choices_beside_the_split() -> None:
    loss = Estimate(1.97, 1.95, 1.99)
    small, large = choose(1e9, 2e10, 2048.0, loss), choose(70e9, 1.4e12, 8192.0, loss)
    assert large.vocab_size.value == pytest.approx(2.1e5, rel=0.1)  # Tao et al.: 212 to 216 thousand for 70B
    assert small.vocab_size.value < 5e4
    for estimate in (large.vocab_size, large.inference_bits, large.mixture_tokens, large.downstream_error):
        assert estimate.low <= estimate.value <= estimate.high
    assert 3 < large.inference_bits.value < 6
    longer = choose(70e9, 1.4e13, 8192.0, loss)  # more data in a model, more bits to hold them
    assert longer.inference_bits.value > large.inference_bits.value
    worse = choose(70e9, 1.4e12, 8192.0, Estimate(2.5, 2.4, 2.6))
    assert worse.downstream_error.value > large.downstream_error.value
    assert choose(70e9, 1.4e12, 8192.0, None).downstream_error is None


def test_the_knee_is_where_device_time_starts_to_be_wasted() -> None:
    points = tuple(TargetPoint(n, 1e6, 1.0, 1e9, days) for n, days in ((8, 100.0), (16, 52.0), (32, 29.0), (64, 20.0)))
    slower = TargetPoint(16, 8e6, 5.0, 2e9, 80.0)
    assert [p.days for p in fastest((*points, slower))] == [100.0, 52.0, 29.0, 20.0]
    assert knee((*points, slower)).devices == 32  # 928 device days against 800; 64 would take 1,280
    assert knee(()) is None


def test_a_budget_on_a_cluster_with_its_pictures(tmp_path: Path) -> None:
    plan = plan_budget(flops=1e21, cluster="h100-sxm:16")
    said = json.loads(json.dumps(plan.json()))
    assert said["knee"]["devices"] >= 16 and said["time_to_target"][0]["devices"] == 16
    by_devices = said["time_to_target_by_devices"]
    assert [row["devices"] for row in by_devices] == [4, 8, 16, 32, 64]
    assert all(a["days"] > b["days"] for a, b in itertools.pairwise(by_devices))
    for name in ("vocab_size", "experts", "active_share", "training_bits", "inference_bits", "downstream_error"):
        assert said[name]["low"] <= said[name]["value"] <= said[name]["high"]
    files = write_budget(plan, tmp_path)
    assert {file.name for file in files if file.suffix == ".png"} == {
        "allocation.png",
        "isoflop.png",
        "surface.png",
        "batch.png",
    }
    assert all(file.stat().st_size > 5_000 for file in files)


def test_curves_agree_with_the_law() -> None:
    law = load("besiroglu")
    curves, minima = iso_flop(law, [1e21, 1e22])
    assert min(row["loss"] for row in curves if row["flops"] == 1e21) == pytest.approx(minima[0]["loss"], rel=1e-4)
    for level, line in contours(law, (1e8, 1e11), (1e9, 1e12)):
        inside = [point for point in line if 1.05e9 < point["tokens"] < 0.95e12]
        for point in inside[:: max(1, len(inside) // 5)]:
            assert law.predict(**point)[0].value == pytest.approx(level, rel=1e-3)
    levels = [level for level, _ in contours(law, (1e8, 1e11), (1e9, 1e12))]
    assert np.all(np.diff(levels) < 0)


def test_steps_of_large_batches_follow_from_smaller_ones() -> None:
    pace = measure_pace("h100-sxm:16", 3e9, 2**18)
    batches = 2.0 ** np.arange(18, 24)
    points = _on(pace, batches / 2**18, 3e9, 6e10, 2.0**18, 1e6)
    assert [point.batch_tokens for point in points] == list(batches)
    assert points[-1].step_s == pytest.approx(pace.at_batch(2.0**23).step_s, rel=0.02)
