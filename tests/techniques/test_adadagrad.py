"""AdAdaGrad: the norm test, and one controller object driving a simulated run and a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.planning.run import NoiseScale, simulate_run
from froude.program.controller import GradientObservation
from froude.training.controller import batch_controllers
from froude.training.controllers.adadagrad import AdAdaGrad
from froude.training.plan import TrainPlan

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
BOX = """
name: box
peak_flops: {fp32: 60.0e9}
memory_bytes: 12.0e9
memory_bandwidth: 15.0e9
devices_per_node: 2
scaleup_domain: 2
scaleup_bandwidth: 1.0e9
confidence: measured
measured: {gemm_flops: 60.0e9, memory_bandwidth: 15.0e9, launch_s: 5.0e-6}
"""


def seen(batch: int, variance: float, norm: float, step: int = 1) -> GradientObservation:
    return GradientObservation(step, batch, norm, variance)


def test_passes_and_fails_by_hand() -> None:
    controller = AdAdaGrad(max_sequences=1000, eta=0.5)
    # 100 / 64 = 1.56 > 0.25 * 4 = 1: fails; 100 sequences would have passed.
    assert controller.observe(seen(64, 100.0, 4.0)).sequences == 100
    assert controller.observe(seen(100, 100.0, 4.0)).sequences == 100
    assert controller.observe(seen(128, 100.0, 4.0)).sequences == 128  # never shrinks


def test_rounds_to_what_divides_and_stops_at_the_largest() -> None:
    controller = AdAdaGrad(max_sequences=200, eta=0.5, multiple=48)
    assert controller.observe(seen(48, 100.0, 4.0)).sequences == 144
    assert controller.observe(seen(48, 1e9, 4.0)).sequences == 192
    assert controller.observe(seen(192, 1e9, 4.0)).sequences == 192


def test_asks_only_at_its_own_steps() -> None:
    controller = AdAdaGrad(max_sequences=1000, interval_steps=10)
    assert controller.observe(seen(64, 1e9, 1.0, step=9)).sequences == 64
    assert controller.observe(seen(64, 1e9, 1.0, step=10)).sequences == 1000
    assert [controller.next_change_step(s) for s in (0, 9, 10, 11)] == [10, 10, 20, 20]


@pytest.mark.parametrize(("variance", "norm"), [(math.nan, 1.0), (1.0, 0.0), (1.0, math.nan)])
def test_no_statistics_no_change(variance: float, norm: float) -> None:
    assert AdAdaGrad(max_sequences=100).observe(seen(8, variance, norm)).sequences == 8


@given(st.integers(1, 500), st.floats(0, 1e6), st.floats(1e-6, 1e3), st.floats(0.05, 2.0), st.integers(1, 64))
def test_what_it_sets_would_have_passed(batch: int, variance: float, norm: float, eta: float, multiple: int) -> None:
    controller = AdAdaGrad(max_sequences=10**9, eta=eta, multiple=multiple)
    after = controller.observe(seen(batch, variance, norm)).sequences
    assert after >= batch
    if after < 10**9 // multiple * multiple:
        assert variance / after <= eta**2 * norm * (1 + 1e-9)
    assert after == batch or after % multiple == 0


def test_registered_with_checked_knobs() -> None:
    assert isinstance(batch_controllers.create("adadagrad", max_sequences=64, eta=0.1), AdAdaGrad)
    with pytest.raises(FroudeError, match="eta: 0 is not valid"):
        batch_controllers.create("adadagrad", max_sequences=64, eta=0)
    with pytest.raises(FroudeError, match="max_sequences: missing"):
        batch_controllers.create("adadagrad")


def test_the_simulated_run_settles_where_noise_and_signal_balance() -> None:
    plan = TrainPlan.parse(
        {
            "model": "meta-llama/Llama-2-7b-hf",
            "cluster": "h100-sxm:8",
            "job": {"seq_len": 4096, "global_batch_tokens": 4096 * 8},
            "layout": {"data_parallel": 8, "zero_stage": 3, "recompute": "full"},
        }
    )
    eta = 0.9
    controller = AdAdaGrad(max_sequences=4096, eta=eta, multiple=8, interval_steps=50)
    run = simulate_run(plan, controller=controller, tokens=4e9)
    batches = [segment.sequences for segment in run.segments]
    assert batches == sorted(batches) and batches[-1] > 4 * batches[0]
    assert all(batch % 8 == 0 for batch in batches)
    # b = variance / (eta^2 (1 + variance / b)) at the fixed point: b = B_noise (1 - eta^2) / eta^2.
    noise = NoiseScale.published().at(run.effective_tokens) / 4096
    assert batches[-1] == pytest.approx(noise * (1 - eta**2) / eta**2, rel=0.1)


def test_the_same_object_drives_a_real_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from froude.runtime.train.run import run_train

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "box.yaml").write_text(BOX)
    plan = TrainPlan.parse(
        {
            "model": str(tmp_path / "config.json"),
            "cluster": f"profile:{tmp_path / 'box.yaml'}:2",
            "job": {"seq_len": 16, "global_batch_tokens": 16 * 8, "precision": "fp32"},
            "layout": {"data_parallel": 2, "micro_batch": 2, "zero_stage": 0},
            "stack": "torch-eager",
        }
    )
    controller = AdAdaGrad(max_sequences=64, eta=0.3, multiple=4)
    run = run_train(plan, steps=8, controller=controller)
    batches = [int(row["tokens"]) // 16 for row in run.steps]
    assert batches[-1] > batches[0]
    # Asked again about what the ranks measured, the same object decides the same.
    for before, after in zip(run.steps, run.steps[1:], strict=False):
        batch = int(before["tokens"]) // 16
        observed = seen(batch, before["gradient_variance"], before["gradient_norm_sq"], int(before["step"]) + 1)
        assert plan.whole_batch(controller.observe(observed).sequences) == int(after["tokens"]) // 16
    # And it drives the simulated run of the very same plan.
    simulated = simulate_run(plan, controller=controller, steps=8, law="besiroglu")
    assert simulated.segments[0].sequences == 8
    assert sum(segment.steps for segment in simulated.segments) == 8
