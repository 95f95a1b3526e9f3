"""Measured tables in prices: exact at measured shapes, gone far from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from froude.core.errors import FroudeError
from froude.machines.cluster import parse_cluster
from froude.models.operator import Matmul
from froude.timing import extra
from froude.timing.roofline import Roofline
from froude.timing.tables import decode_line


def product(m: object) -> Matmul:
    return Matmul(name="x", m=m, k=4096.0, n=4096.0)  # type: ignore[arg-type]


def test_a_ratio_counts_near_measured_shapes_and_fades() -> None:
    cluster = parse_cluster("h100-sxm:8")
    plain = Roofline(cluster)
    isolated_s = float(plain.isolated.operator(product(4096.0)).seconds)
    tables = {"product.bf16.forward": ((4096.0, 4096.0, 4096.0, 1.3 * isolated_s),)}
    device = cluster.device.model_copy(update={"tables": tables})
    measured = Roofline(cluster.model_copy(update={"device": device}))
    m = np.array([512.0, 2048.0, 4096.0, 65536.0])  # three doublings below, one, none, above the largest
    ratio = measured.operator(product(m)).seconds / plain.operator(product(m)).seconds
    assert ratio == pytest.approx([1.0, 1.3, 1.3, 1.3])
    between = float(measured.operator(product(1448.0)).seconds / plain.operator(product(1448.0)).seconds)
    assert 1.0 < between < 1.3


def test_decode_attention_is_a_line_through_its_table() -> None:
    rows = [(b, k, 32.0, 8.0, 128.0) for b in (1.0, 8.0, 64.0) for k in (1024.0, 8192.0)]
    table = tuple((*row, 5e-6 + 4.0 * row[0] * row[1] * 8 * 128 / 2e12) for row in rows)
    assert decode_line({"decode.bf16": table}) == pytest.approx((5e-6, 2e12), rel=1e-6)
    assert decode_line({}) is None


def test_the_extra_s_tables_are_used_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "h100_sxm" / "gemm" / "vllm" / "1.0"
    folder.mkdir(parents=True)
    row = {"framework": "VLLM", "gemm_dtype": "bfloat16", "m": 4096, "n": 4096, "k": 4096, "latency": 0.3}
    pl.DataFrame([row]).write_parquet(folder / "gemm_perf.parquet")
    monkeypatch.setattr(extra, "tables_folder", lambda: tmp_path)
    cluster = parse_cluster("h100-sxm:8")
    assert extra.with_kernels(cluster, "fitted") is cluster
    measured = extra.with_kernels(cluster, "measured", 1e-6)
    assert measured.device.tables["product.bf16.forward"] == ((4096.0, 4096.0, 4096.0, pytest.approx(299e-6)),)
    assert "products" in extra.said_of(measured)[0]
    with pytest.raises(FroudeError, match="has no tables of mi300x"):
        extra.with_kernels(parse_cluster("mi300x:8"), "measured")
    with pytest.raises(FroudeError, match="did you mean 'measured'"):
        extra.with_kernels(cluster, "mesured")
