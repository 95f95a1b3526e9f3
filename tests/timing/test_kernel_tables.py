"""Kernels measured on real devices (the optional extra ``kernels``), and the reader of their tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from froude.cli import app
from froude.core.errors import FroudeError
from froude.timing.kernel_check import burst, check_kernels, left_out
from froude.timing.kernel_tables import KINDS, measured, tables_folder


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Two engines' products of a device, in the form of aiconfigurator-core's tables."""
    shapes = [(2**i, 8192, 8192) for i in range(4, 15)]
    for engine, slower in (("SGLang", 1.0), ("VLLM", 1.2)):
        folder = tmp_path / "h100_sxm" / "gemm" / engine.lower() / "1.0"
        folder.mkdir(parents=True)
        rows = [
            {"framework": engine, "gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": slower * (1.1 + m / 1024)}
            for m, n, k in shapes
            for dtype in ("bfloat16", "fp8")
        ]
        pl.DataFrame(rows).write_parquet(folder / "gemm_perf.parquet")
    return tmp_path


def test_tables_are_read_by_kind(tables: Path) -> None:
    wide, narrow = (next(kind for kind in KINDS if kind.name == f"products, {bits} bits") for bits in (16, 8))
    columns, seconds = measured(tables, "h100_sxm", wide, merged=True)
    assert sorted(columns) == ["k", "m", "n"]
    assert seconds[0] == pytest.approx(1.1 * (1.1 + 16 / 1024) * 1e-3)  # the median of the two engines, in seconds
    _, best = measured(tables, "h100_sxm", narrow, merged=True)
    assert best == pytest.approx(seconds / 1.1)  # in 8 bits the better engine counts
    assert measured(tables, "a100_sxm", wide)[1].size == 0


def test_engines_are_read_one_by_one_in_their_newest_release(tables: Path) -> None:
    old = tables / "h100_sxm" / "gemm" / "sglang" / "0.9.20"
    old.mkdir()
    new = tables / "h100_sxm" / "gemm" / "sglang" / "1.0" / "gemm_perf.parquet"
    pl.read_parquet(new).with_columns(pl.col("latency") * 3.0).write_parquet(old / "gemm_perf.parquet")
    columns, seconds = measured(tables, "h100_sxm", KINDS[0])
    assert set(columns["engine"]) == {"vllm", "sglang"}
    by_engine = {name: seconds[columns["engine"] == name] for name in ("vllm", "sglang")}
    assert by_engine["vllm"] == pytest.approx(1.2 * by_engine["sglang"])


def test_a_check_looks_only_at_shapes_left_out(tables: Path) -> None:
    found = {e.kind: e for e in check_kernels(tables).errors}
    columns, seconds = measured(tables, "h100_sxm", KINDS[0])
    held = left_out(columns)
    assert 0 < held.sum() < len(held)
    some = {name: values[held] for name, values in columns.items()}
    error = np.abs(KINDS[0].price(some, burst("h100-sxm")) / seconds[held] - 1.0)
    assert found[KINDS[0].name].n == held.sum()
    assert found[KINDS[0].name].median == pytest.approx(float(np.median(error)))


def test_the_command_prints_every_device_and_kind(tables: Path) -> None:
    result = CliRunner().invoke(app, ["check", "kernels", str(tables), "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.output)["kernels"]
    assert {(row["device"], row["kind"]) for row in rows} == {
        ("h100-sxm", "products, 16 bits"),
        ("h100-sxm", "products, 8 bits"),
    }


def test_folders_without_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FroudeError, match="holds no tables"):
        tables_folder(tmp_path)


def test_kernels_that_were_measured() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs the extra `kernels`")
    found = {(e.device, e.kind): e for e in check_kernels().errors}
    for device in ("a100-sxm-80gb", "h100-sxm", "h200-sxm", "b200-sxm"):
        products, attention = found[device, "products, 16 bits"], found[device, "attention, prefill"]
        assert products.median < 0.05 and products.p90 < 0.15
        assert attention.median < 0.07 and attention.p90 < 0.22
