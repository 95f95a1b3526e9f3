from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.machines.costs import carbon_intensity, facility_pue, find_price, read_table
from froude.machines.device import Device, device_names, find_device, list_devices

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"

CANONICAL = [
    "a100-sxm-80gb",
    "a100-sxm-40gb",
    "h100-sxm",
    "h100-pcie",
    "h200-sxm",
    "b200-sxm",
    "gb200",
    "b300-sxm",
    "gb300",
    "l40s",
    "l4",
    "a10g",
    "v100-sxm-32gb",
    "mi250x-gcd",
    "mi300x",
    "mi325x",
    "mi355x",
    "tpu-v4",
    "tpu-v5e",
    "tpu-v5p",
    "tpu-v6e",
    "trainium1",
    "trainium2",
    "gaudi2",
    "rtx-pro-6000",
]


@pytest.mark.parametrize("name", CANONICAL)
def test_canonical_names(name: str) -> None:
    assert find_device(name).name == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("H100", "h100-sxm"),
        ("H100-80GB-SXM", "h100-sxm"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("Tesla V100-SXM2-32GB", "v100-sxm-32gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("b200", "b200-sxm"),
        ("TPU v5p", "tpu-v5p"),
        ("trn2", "trainium2"),
    ],
)
def test_aliases(alias: str, name: str) -> None:
    assert find_device(alias).name == name


def test_published_figures() -> None:
    # NVIDIA H100 data sheet: 1,979 TFLOP/s bf16 with sparsity, so half of it dense; 900 GB/s of NVLink both ways.
    h100 = find_device("h100-sxm")
    assert h100.peak("bf16") == pytest.approx(1979e12 / 2, rel=1e-3)
    assert h100.peak("fp8") == pytest.approx(2 * h100.peak("bf16"), rel=1e-3)
    assert h100.scaleup_bandwidth == 450e9
    assert h100.memory_bytes == 80 * 2**30
    a100 = find_device("a100-sxm-80gb")
    assert (a100.peak("bf16"), a100.memory_bandwidth, a100.tdp_w) == (312e12, 2039e9, 400)
    assert a100.sustained_flops == {"bf16": 262e12}


def test_all_devices_are_plausible() -> None:
    for device in list_devices():
        assert device.source
        assert device.memory_bandwidth > 1e10
        assert device.tdp_w > device.idle_w > 0
        for dtype, sustained in device.sustained_flops.items():
            assert 0.5 * device.peak(dtype) < sustained < device.peak(dtype)
        ladder = [device.peak_flops[d] for d in ("fp32", "tf32", "bf16", "fp8", "fp4") if d in device.peak_flops]
        assert ladder == sorted(ladder), device.name


def test_missing_arithmetic_says_what_there_is() -> None:
    with pytest.raises(FroudeError, match=r"'fp8' has no arithmetic on a100-sxm-80gb, which has fp32, tf32, bf16"):
        find_device("a100").peak("fp8")


@pytest.mark.parametrize("name", ["h101", "", "???", "nvidia"])
def test_unknown_device_names_the_nearest(name: str) -> None:
    with pytest.raises(FroudeError, match=r"did you mean|should be one of: .*v100.* more"):
        find_device(name)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"peak_flops": {"bf17": 1e12}}, "did you mean 'bf16'"),
        ({"peak_flops": {}}, "peak_flops is empty"),
        ({"memory_bytes": 0}, "memory_bytes: 0"),
        ({"idle_w": 9.0, "tdp_w": 5.0}, "idle_w 9 exceeds tdp_w 5"),
        ({"memory_bandwith": 1.0}, "did you mean 'memory_bandwidth'"),
    ],
)
def test_bad_devices_are_one_sentence(change: dict[str, object], sentence: str) -> None:
    good: dict[str, object] = {
        "name": "box",
        "peak_flops": {"fp32": 1e11},
        "memory_bytes": 1e9,
        "memory_bandwidth": 1e10,
    }
    assert Device.parse(good).peak("fp32") == 1e11
    with pytest.raises(FroudeError, match=sentence):
        Device.parse({**good, **change})


@given(st.sampled_from(device_names()), st.booleans(), st.sampled_from("-_ "))
def test_case_and_separators_do_not_matter(name: str, upper: bool, separator: str) -> None:
    text = name.replace("-", separator)
    assert find_device(text.upper() if upper else text).name == name


@pytest.mark.skipif(not DATA.is_dir(), reason="measurements are not here")
@pytest.mark.parametrize("table", ["train_measured", "train_memory", "train_oom", "serve_measured"])
def test_every_measured_device_resolves(table: str) -> None:
    with (DATA / f"{table}.csv").open(newline="", encoding="utf-8") as file:
        names = {row["device"] for row in csv.DictReader(file)}
    assert {find_device(name).name for name in names} == names


def test_prices_name_devices_of_the_catalogue() -> None:
    for row in read_table("prices.toml")["price"]:
        assert row["device"] in device_names()
        assert row["source"]
    price = find_price("h100-sxm")
    assert price is not None
    assert price.low < price.usd_per_device_hour < price.high
    assert find_price("groq-lpu") is None


def test_carbon_and_pue() -> None:
    assert carbon_intensity("Sweden") < carbon_intensity("us-east-1") < carbon_intensity("india") < 1
    assert 1 < facility_pue("gcp") < 1.3
    with pytest.raises(FroudeError, match="did you mean 'sweden'"):
        carbon_intensity("swedn")


def froude(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "froude.cli", *arguments], capture_output=True, text=True, check=False)


def test_show_devices_and_models() -> None:
    shown = json.loads(froude("show", "devices", "H100", "--json").stdout)
    assert shown["schema_version"] == 1
    assert shown["devices"][0]["name"] == "h100-sxm"
    shown = json.loads(froude("show", "models", "--json").stdout)
    assert {"name", "parameters", "active_parameters", "source"} <= set(shown["models"][0])
    table = froude("show", "models", "llama-3.1-8b")
    assert "8,030,261,248" in table.stdout
    wrong = froude("show", "devices", "h1000")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "did you mean" in wrong.stderr
