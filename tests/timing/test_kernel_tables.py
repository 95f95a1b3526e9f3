"""The form of matrix products against kernels measured on real devices (the optional extra ``kernels``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from froude.machines.cluster import parse_cluster
from froude.models.operator import Attention, Matmul
from froude.timing.constants import default_constants
from froude.timing.roofline import Roofline
from froude.timing.stack import find_stack

tables = pytest.importorskip("aiconfigurator_core", reason="needs the extra `kernels`")


def measured_products(system: str) -> pl.DataFrame:
    root = Path(tables.__file__).parent / "systems" / "data" / system / "gemm"
    frames = [
        pl.read_parquet(file).filter(pl.col("gemm_dtype") == "bfloat16").select("framework", "m", "n", "k", "latency")
        for file in sorted(root.glob("*/*/*.parquet"))
    ]
    engines = pl.concat(frames).group_by("framework", "m", "n", "k").agg(pl.col("latency").min())
    return engines.group_by("m", "n", "k").agg(pl.col("latency").median()).filter(pl.col("latency") > 0.05)


@pytest.mark.parametrize(
    ("system", "device"),
    [("a100_sxm", "a100-sxm-80gb"), ("h100_sxm", "h100-sxm"), ("h200_sxm", "h200-sxm"), ("b200_sxm", "b200-sxm")],
)
def test_products_over_50_microseconds(system: str, device: str) -> None:
    table = measured_products(system)
    clocks = {name: 1.0 for name in default_constants().table if name.startswith("clock.")}
    burst = default_constants().but(clocks, "isolated kernels")
    m, k, n = (table[c].to_numpy().astype(float) for c in "mkn")
    model = Roofline(parse_cluster(f"{device}:1"), constants=burst)
    error = np.abs(model.operator(Matmul(name="x", m=m, k=k, n=n)).seconds / (table["latency"].to_numpy() * 1e-3) - 1)
    print(f"{device}: {len(error)} shapes, median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}")
    assert np.median(error) < 0.07
    assert np.quantile(error, 0.9) < 0.18


@pytest.mark.parametrize(
    ("system", "device", "kernel"),
    [
        ("a100_sxm", "a100-sxm-80gb", "flash-2"),
        ("h100_sxm", "h100-sxm", "flash-3"),
        ("h200_sxm", "h200-sxm", "flash-3"),
        ("b200_sxm", "b200-sxm", "flash-3"),
    ],
)
def test_causal_attention_of_training_lengths(system: str, device: str, kernel: str) -> None:
    root = Path(tables.__file__).parent / "systems" / "data" / system / "attention" / "sglang"
    table = pl.concat(
        pl.read_parquet(file).filter(
            (pl.col("attn_dtype") == "bfloat16") & (pl.col("kv_cache_dtype") == "bfloat16") & (pl.col("step") == 0)
        )
        for file in sorted(root.glob("*/context_attention_perf.parquet"))
    ).filter((pl.col("latency") > 0.05) & (pl.col("head_dim") == 128) & (pl.col("isl") >= 2048))
    batch, queries, heads, kv_heads = (
        table[c].to_numpy().astype(float) for c in ("batch_size", "isl", "num_heads", "num_key_value_heads")
    )
    clocks = {name: 1.0 for name in default_constants().table if name.startswith("clock.")}
    model = Roofline(
        parse_cluster(f"{device}:1"),
        find_stack("megatron").but(attention=kernel),
        default_constants().but(clocks, "isolated kernels"),
    )
    kv_heads = np.where(kv_heads > 0, kv_heads, heads)
    op = Attention.causal(batch=batch, queries=queries, heads=heads, kv_heads=kv_heads, head_dim=128.0)
    error = np.abs(model.operator(op).seconds / (table["latency"].to_numpy() * 1e-3) - 1)
    print(f"{device}, {kernel}: {len(error)} shapes, median {np.median(error):.1%}, p90 {np.quantile(error, 0.9):.1%}")
    assert np.median(error) < 0.1
