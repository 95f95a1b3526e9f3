"""Profiles of other tools: SimuMax system files, Vidur's CSV files. Figures are from those projects' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from froude.core.errors import FroudeError
from froude.machines.cluster import Group, parse_cluster
from froude.models.operator import Attention, Elementwise, Matmul
from froude.timing.cost import Collective
from froude.timing.roofline import Roofline


def system_file() -> dict[str, Any]:
    """A shortened configs/system/a100_pcie.json of SimuMax."""
    ring = {"scale": 1, "offset": -1}
    network = {
        "bandwidth": {"efficient_factor": 0.5, "gbps": 30, "latency_us": 10},
        "op": {
            "all_reduce": {"scale": 2, "offset": -1, "efficient_factor": 0.4176, "latency_us": 8.98},
            "all_gather": ring,
            "reduce_scatter": ring,
            "all2all": ring,
            "p2p": {"scale": 1, "offset": 0},
        },
    }
    product = "b=1, m=4096, k=5120, n=1536, layout=TN, accumulate=False, out_dtype=bf16"
    weight = "b=1, m=1536, k=4096, n=5120, layout=NT, accumulate=True, out_dtype=fp32"
    heads = "head_num=32, kv_head_num=8, qk_head_dim=128, v_head_dim=128, qkv_contiguous=True"
    matmul = {product: 0.7876672065615554, weight: 0.6244545650481178}
    return {
        "sys_name": "a100_pcie_bf16",
        "num_per_node": 8,
        "accelerator": {
            "mem_gbs": 80,
            "op": {
                "default": {"tflops": 312, "efficient_factor": 0.75},
                "matmul": {"tflops": 312, "efficient_factor": 0.75, "accurate_efficient_factor": matmul},
                "sdp_fwd": {
                    "tflops": 312,
                    "efficient_factor": 0.75,
                    "accurate_efficient_factor": {f"batch=1, seq_len=4096, {heads}": 1.1319724660210262},
                },
            },
            "bandwidth": {"default": {"efficient_factor": 0.91, "gbps": 1600, "latency_us": 40}},
        },
        "networks": {"intra_with_pcie": True, "intra_node_pcie_8x": network, "inter_node": network},
    }


def priced(path: object, count: int = 8) -> Roofline:
    """A cost model of a profile, at the clocks of isolated kernels."""
    model = Roofline(parse_cluster(f"profile:{path}:{count}"))
    clocks = {name: 1.0 for name in model.constants.table if name.startswith("clock.")}
    stack = model.stack.but(attention="flash-2")
    return Roofline(model.cluster, stack, model.constants.but(clocks, "test"))


def test_a_system_file_prices_its_own_shapes(tmp_path: Path) -> None:
    path = tmp_path / "system.json"
    path.write_text(json.dumps(system_file()))
    model = priced(path)
    device = model.cluster.device
    assert (device.name, model.cluster.devices_per_node) == ("a100-pcie-bf16", 8)
    assert device.sustained_flops["bf16"] == pytest.approx(0.75 * 312e12)
    forward = Matmul(name="qkv", m=4096.0, k=5120.0, n=1536.0)
    flops = 2.0 * 4096 * 5120 * 1536
    assert model.operator(forward).seconds == pytest.approx(flops / (312e12 * 0.7876672), rel=0.01)
    weight = forward.backward()[1]  # a file's gradient of weights stands transposed
    assert model.operator(weight).seconds == pytest.approx(flops / (312e12 * 0.6244546), rel=0.01)
    attention = Attention.causal(batch=1.0, queries=4096.0, heads=32.0, kv_heads=8.0, head_dim=128.0)
    assert model.operator(attention).seconds == pytest.approx(4.0 * 4096**2 * 32 * 128 / (312e12 * 1.13197), rel=0.01)
    stream = Elementwise(name="x", rows=2.0**28, width=1.0, fusable=False)
    assert model.operator(stream).seconds == pytest.approx(2.0**30 / (1600 * 2**30 * 0.91) + 40e-6, rel=0.01)
    reduced = Collective(kind="all-reduce", bytes=2.0**30, group=Group(8), name="x")
    assert model.collective(reduced).seconds == pytest.approx(2.0 * 7 / 8 / (30 * 0.4176) + 8.98e-6, rel=0.01)


def layer_csv(folder: Path) -> Path:
    """Two rows of Vidur's compute/a100/meta-llama/Llama-2-7b-hf/mlp.csv (medians), and one of its network profiles."""
    kernels = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_act", "mlp_down_proj", "add")
    shape = "n_head,n_kv_head,n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers"
    head = ",".join([*(f"time_stats.{kernel}.median" for kernel in kernels), shape])
    rows = ["1.911,0.611,3.3655,0.266,1.604,0.055,32,32,4096,11008,32768,True,4096,1",
            "1.7200,0.543,3.159,0.246,1.451,0.052,32,32,4096,11008,32768,True,3776,1"]  # fmt: skip
    file = folder / "compute" / "a100" / "meta-llama" / "Llama-2-7b-hf" / "mlp.csv"
    file.parent.mkdir(parents=True)
    file.write_text("\n".join([head, *rows]) + "\n")
    network = folder / "network" / "a100_dgx" / "all_reduce.csv"
    network.parent.mkdir(parents=True)
    network.write_text(
        ",time_stats.all_reduce.median,rank,num_workers,size,collective,devices_per_node,max_devices_per_node\n"
        "160,0.44,0,2,2097152,all_reduce,1,8\n161,0.021,0,2,2097152,all_reduce,2,8\n"
    )
    return folder


def test_csv_files_of_vidur_price_their_own_shapes(tmp_path: Path) -> None:
    model = priced(layer_csv(tmp_path), 16)
    assert model.cluster.device.name == "a100-sxm-80gb"
    up = Matmul(name="mlp-up", m=4096.0, k=4096.0, n=22016.0)
    assert model.operator(up).seconds == pytest.approx(3.3655e-3, rel=0.01)
    inside = Collective(kind="all-reduce", bytes=2.0**21, group=Group(2), name="x")
    across = Collective(kind="all-reduce", bytes=2.0**21, group=Group(2, 8), name="x")
    assert model.collective(inside).seconds == pytest.approx(21e-6, rel=0.01)
    assert model.collective(across).seconds == pytest.approx(440e-6, rel=0.01)


def test_what_is_no_profile_is_said_in_one_sentence(tmp_path: Path) -> None:
    broken = system_file()
    del broken["accelerator"]["op"]["matmul"]["tflops"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    other = tmp_path / "a100" / "other.csv"
    other.parent.mkdir()
    other.write_text("a,b\n1,2\n")
    nameless = tmp_path / "unknown" / "all_reduce.csv"
    nameless.parent.mkdir()
    nameless.write_text("num_workers\n1\n")
    bad = layer_csv(tmp_path / "x") / "network" / "a100_dgx" / "all_reduce.csv"
    bad.write_text(bad.read_text().replace("0.021", "fast"))
    for path, sentence in (
        (tmp_path / "broken.json", "'tflops' is missing"),
        (other, "not a profile of Vidur"),
        (nameless, "no folder names its device"),
        (bad, "line 3 has a cell that is no number"),
        (tmp_path / "none.csv", "no such file"),
    ):
        with pytest.raises(FroudeError, match=sentence):
            parse_cluster(f"profile:{path}:8")
