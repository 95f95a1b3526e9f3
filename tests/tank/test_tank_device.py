from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from froude.core.errors import InvalidValueError
from froude.machines.cluster import Group, parse_cluster
from froude.machines.device import Device
from froude.models.operator import Attention, Elementwise, Gather, Matmul
from froude.tank.device import busy_warning, measure_device
from froude.timing.cost import Collective
from froude.timing.measured import Curve, MeasuredKernels
from froude.timing.roofline import Roofline
from froude.timing.stack import find_stack


@pytest.fixture(scope="module")
def box() -> Device:
    return measure_device(processes=2, rounds=1, window_s=0.001)


def test_the_profile_is_a_cluster(box, tmp_path):
    box.write(tmp_path / "box.yaml")
    cluster = parse_cluster(f"profile:{tmp_path / 'box.yaml'}:2")
    assert cluster.device == box
    assert cluster.count == 2
    assert box.devices_per_node == 2
    assert 1e8 < box.measured["gemm_flops"] < 1e14
    assert 1e8 < box.measured["memory_bandwidth"] < 1e13
    assert 1e-8 < box.measured["launch_s"] < 1e-3
    assert 0 < box.measured["processor_share"] <= 1.2


def test_every_kind_of_work_of_a_training_step_is_measured(box, tmp_path):
    box.write(tmp_path / "box.yaml")
    model = Roofline(parse_cluster(f"profile:{tmp_path / 'box.yaml'}:2"), find_stack("torch-eager"))
    product = Matmul(name="qkv", dtype="fp32", m=128, k=64, n=192)
    attention = Attention.causal(batch=2, queries=128, heads=2, kv_heads=2, head_dim=32, dtype="fp32")
    operators = [
        product,
        *product.backward(),
        attention,
        *attention.backward(),
        *(
            op
            for name in ("input-norm", "rotary", "mlp-activation", "mlp-residual", "cross-entropy")
            for first in [Elementwise(name=name, dtype="fp32", rows=128, width=64)]
            for op in (first, *first.backward())
        ),
        Elementwise(name="adam", dtype="fp32", rows=10**6, width=1),
        Gather(name="embedding", dtype="fp32", rows=128, width=64),
        *Gather(name="embedding", dtype="fp32", rows=128, width=64).backward(),
    ]
    for op in operators:
        cost = model.operator(op)
        assert cost.source == "measured on this machine", op.name
        assert 0 < float(np.asarray(cost.seconds)) < 10
    for kind in ("all-reduce", "all-gather", "reduce-scatter", "send"):
        cost = model.collective(Collective(kind=kind, bytes=2.0**20, group=Group(2), name="gradients"))
        assert cost.source == "measured on this machine"
        assert 0 < float(np.asarray(cost.seconds)) < 10


def test_a_busy_machine_is_reported(box):
    quiet = box.model_copy(update={"measured": {**box.measured, "processor_share": 0.99}})
    busy = box.model_copy(update={"measured": {**box.measured, "processor_share": 0.4}})
    assert not busy_warning(quiet)
    assert "40%" in busy_warning(busy)[0]


def test_no_processes_cannot_be_measured():
    with pytest.raises(InvalidValueError, match="processes: 0"):
        measure_device(processes=0)


def test_curves_interpolate_as_power_laws_and_flatten_where_they_should():
    curve = Curve(np.array([10.0, 1000.0]), np.array([1.0, 100.0]))
    assert float(curve.rate(100.0)) == pytest.approx(10.0)
    assert float(curve.rate(5000.0)) == pytest.approx(100.0)  # above: the rate stays
    assert 1.0 / float(curve.rate(1.0)) == pytest.approx(10.0 / float(curve.rate(10.0)))  # below: the time stays


def test_a_weight_gradient_is_added_to_what_was_there():
    device = Device(
        name="box",
        peak_flops={"fp32": 1e9},
        memory_bytes=1e9,
        memory_bandwidth=1e9,
        measured={
            "matmul.fp32.forward@64": 1e9,
            "matmul.fp32.wgrad@64": 1e9,
            "residual.fp32.forward@4096": 1e6,
        },
    )
    kernels = MeasuredKernels.of(device)
    forward = Matmul(name="up", dtype="fp32", m=64, k=64, n=64)
    wgrad = Matmul(name="up-wgrad", dtype="fp32", m=64, k=64, n=64)
    assert float(kernels.operator_s(wgrad)) == pytest.approx(float(kernels.operator_s(forward)) + 4096 / 1e6)
    # nothing is known of other types of work: they are left to the roofline
    assert kernels.operator_s(Elementwise(name="norm", dtype="fp32", rows=1, width=1)) is None
    send = Collective(kind="send", bytes=1.0, group=Group(2), name="x")
    assert kernels.collective_s(send) is None
