from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.machines.cluster import Cluster, Group, parse_cluster, parse_clusters
from froude.machines.device import find_device
from froude.machines.power import PowerModel


def test_count_and_what_follows_from_the_device() -> None:
    cluster = parse_cluster("H100:1024")
    assert (cluster.device.name, cluster.count, cluster.nodes) == ("h100-sxm", 1024, 128)
    assert (cluster.scaleup_domain, cluster.scaleup_bandwidth, cluster.scaleout_bandwidth) == (8, 450e9, 50e9)
    assert cluster.usd_per_device_hour is not None
    # Llama Team (2024): a job on 16,384 H100 was interrupted every three hours or so.
    assert cluster.device_mtbf_s / 16384 / 3600 == pytest.approx(3.1, abs=0.1)


def test_range_doubles() -> None:
    assert [c.count for c in parse_clusters("h100-sxm:256..4096")] == [256, 512, 1024, 2048, 4096]
    assert [c.count for c in parse_clusters("l4:3..20")] == [3, 6, 12]
    with pytest.raises(FroudeError, match="is a range"):
        parse_cluster("h100-sxm:256..4096")


def test_yaml_overrides_and_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("device: a100\ncount: 16\nusd_per_device_hour: 1.5\nregion: sweden\nscaleup_domain: 4\n")
    cluster = parse_cluster(str(path))
    assert (cluster.usd_per_device_hour, cluster.kg_co2e_per_kwh, cluster.scaleup_domain) == (1.5, 0.040695, 4)
    assert cluster.device.name == "a100-sxm-80gb"
    cluster.write(path)
    assert parse_cluster(str(path)) == cluster
    assert cluster.resized(32).model_dump(exclude={"count"}) == cluster.model_dump(exclude={"count"})


def test_profile_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "box.yaml"
    path.write_text(
        "name: box\npeak_flops: {fp32: 1.0e+11}\nmemory_bytes: 8.0e+9\nmemory_bandwidth: 1.0e+10\ndevices_per_node: 2\n"
        "scaleup_domain: 2\nscaleup_bandwidth: 2.0e+9\nmeasured: {collective_latency_s: 2.0e-5}\n"
    )
    cluster = parse_cluster(f"profile:{path}:2")
    assert (cluster.count, cluster.scaleup_bandwidth, cluster.scaleup_latency_s) == (2, 2e9, 2e-5)
    assert cluster.usd_per_device_hour is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("h100-sxm:0", "at least 1 is needed"),
        ("h100-sxm:-8", "at least 1 is needed"),
        ("h100-sxm:many", "'many' where a count"),
        ("h100-sxm:", "where a count"),
        ("h100-sxm:8..4", "ends"),
        ("h100-sxm", "neither DEVICE:COUNT"),
        (":8", "neither DEVICE:COUNT"),
        ("", "neither DEVICE:COUNT"),
        ("h100-sxn:8", "did you mean 'h100-sxm'"),
        ("profile:8", "profile:FILE:COUNT"),
        ("profile:absent.yaml:2", "no such file"),
        ("absent.yaml", "no such file"),
    ],
)
def test_malformed_text_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(FroudeError, match=sentence) as error:
        parse_clusters(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("device: h100-sxm\ncount: 0\n", "count: 0"),
        ("device: h100-sxm\ncount: 8\npue: 0.5\n", "pue: 0.5"),
        ("device: h100-sxm\ncount: 8\nscaleup_bandwith: 1\n", "did you mean 'scaleup_bandwidth'"),
        ("device: h100-sxm\n", "count: missing"),
        ("count: 8\n", "device: missing"),
        ("device: h100-sxm\ncount: 8\nregion: swedn\n", "did you mean 'sweden'"),
        ("device: {name: x}\ncount: 8\n", "missing, and it is required"),
        ("- 1\n", "expected a mapping"),
    ],
)
def test_bad_cluster_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(FroudeError, match=sentence) as error:
        parse_cluster(str(path))
    assert "\n" not in str(error.value)


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 5))
def test_group_inside_domains(log_ranks: int, log_stride: int, log_domain: int) -> None:
    ranks, stride, domain = 2**log_ranks, 2**log_stride, 2**log_domain
    members = [i * stride for i in range(ranks)]
    first = sum(member // domain == 0 for member in members)
    group = Group(ranks, stride)
    assert group.inside(domain) == first
    assert group.domains(domain) == len({member // domain for member in members})


def test_groups_are_vectorised() -> None:
    group = Group(np.array([8, 8, 16]), np.array([1, 8, 4]))
    assert group.inside(8).tolist() == [8, 1, 2]
    assert group.domains(8).tolist() == [1, 8, 8]


A100 = PowerModel.of(find_device("a100-sxm-80gb"))


def test_power_between_idle_and_tdp() -> None:
    assert A100.watts(0.0, 0.0) == A100.idle_w
    assert A100.watts(1.0, 1.0) == pytest.approx(A100.tdp_w)


def test_lower_clock_against_a_measurement() -> None:
    # Patel et al. (2024): locking A100 at 1.1 of 1.41 GHz lowers peak power by up to 20%.
    assert 1 - A100.watts(1.0, 1.0, 1110 / 1410) / A100.tdp_w == pytest.approx(0.20, abs=0.02)


def test_lower_clock_slows_compute_and_spares_memory() -> None:
    assert A100.slowdown(1.0, 0.2, 0.5) == 2.0
    assert A100.slowdown(0.2, 1.0, 0.5) == 1.0
    assert A100.slowdown(0.8, 1.0, 0.5) == pytest.approx(1.6)


@given(st.floats(0.2, 1.0), st.floats(0.2, 1.0), st.floats(0, 1), st.floats(0, 1))
def test_power_rises_with_clock(first: float, second: float, compute: float, memory: float) -> None:
    low, high = sorted((first, second))
    assert A100.watts(compute, memory, low) <= A100.watts(compute, memory, high) + 1e-9
    assert A100.idle_w <= A100.watts(compute, memory, low) <= A100.tdp_w + 1e-9


@given(st.floats(150, 420))
def test_clock_for_a_budget(budget_w: float) -> None:
    clock = A100.clock_for(budget_w, 1.0, 1.0)
    watts = float(A100.watts(1.0, 1.0, clock))
    if A100.min_clock < clock < 1.0:
        assert watts == pytest.approx(budget_w, rel=1e-6)
    elif clock == 1.0:
        assert watts <= budget_w
    else:
        assert watts >= budget_w


def test_cluster_device_must_be_known() -> None:
    with pytest.raises(FroudeError, match="did you mean 'mi300x'"):
        Cluster.parse({"device": "mi300z", "count": 8})
