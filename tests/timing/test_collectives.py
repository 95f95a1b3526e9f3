from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.machines.cluster import parse_cluster
from froude.models.operator import Elementwise
from froude.timing.collectives import level_bytes, sent_bytes
from froude.timing.cost import Collective, CollectiveKind, Group
from froude.timing.roofline import Roofline

KINDS = get_args(CollectiveKind)
H100 = Roofline(parse_cluster("h100-sxm:1024"))
ranks = st.sampled_from([1, 2, 4, 8, 16, 64, 256])
strides = st.sampled_from([1, 2, 4, 8, 16])


def seconds(kind: CollectiveKind, size: float, group: Group) -> float:
    return float(H100.collective(Collective(kind=kind, bytes=size, group=group, name="x")).seconds)


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), n=ranks, stride=strides, size=st.floats(1, 1e11), more=st.floats(1, 1e11))
def test_more_bytes_take_longer(kind: CollectiveKind, n: int, stride: int, size: float, more: float) -> None:
    group = Group(ranks=n, stride=stride)
    assert seconds(kind, size + more, group) >= seconds(kind, size, group)


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), n=ranks, stride=strides, size=st.floats(1, 1e11))
def test_never_faster_than_the_links(kind: CollectiveKind, n: int, stride: int, size: float) -> None:
    group = Group(ranks=n, stride=stride)
    up, out = level_bytes(kind, size, group, H100.cluster.scaleup_domain)
    links = max(float(up) / H100.cluster.scaleup_bandwidth, float(out) / H100.cluster.scaleout_bandwidth)
    assert seconds(kind, size, group) >= links


@given(kind=st.sampled_from(KINDS), n=ranks, size=st.floats(1, 1e11))
def test_bytes_on_the_wire_are_conserved_when_one_level_carries_all(kind: CollectiveKind, n: int, size: float) -> None:
    inside = level_bytes(kind, size, Group(ranks=n, stride=1), 1024)
    outside = level_bytes(kind, size, Group(ranks=n, stride=64), 8)
    wire = float(sent_bytes(kind, size, n))
    assert float(inside[0]) == pytest.approx(wire) and float(inside[1]) == 0
    assert float(outside[1]) == pytest.approx(wire) and float(outside[0]) == 0


@given(n=st.sampled_from([16, 64, 256]), size=st.floats(1, 1e11))
def test_an_exchange_sends_every_byte_over_one_level_or_the_other(n: int, size: float) -> None:
    up, out = level_bytes("all-to-all", size, Group(ranks=n, stride=1), 8)
    assert float(up + out) == pytest.approx(float(sent_bytes("all-to-all", size, n)))


def test_a_reduction_is_a_scatter_and_a_gather() -> None:
    for n in (2, 8, 64):
        both = sent_bytes("reduce-scatter", 1e9, n) + sent_bytes("all-gather", 1e9, n)
        assert sent_bytes("all-reduce", 1e9, n) == pytest.approx(both)
        assert sent_bytes("all-reduce", 1e9, n) == pytest.approx(2e9 * (n - 1) / n)  # Patarasuk and Yuan (2009)


def test_lanes_every_rank_of_a_node_has_its_own_port() -> None:
    size = 1e10
    one_lane = seconds("all-reduce", size, Group(ranks=16, stride=8))  # one rank of the group in each node
    eight_lanes = seconds("all-reduce", size, Group(ranks=16 * 8, stride=1))  # eight ranks in each node
    assert one_lane / eight_lanes == pytest.approx(8, rel=0.05)


def test_bus_bandwidth_inside_a_node_is_what_nccl_reports() -> None:
    # nccl-tests, all_reduce_perf on 8 x H100 SXM: bus bandwidth 320 to 480 GB/s at 1 GiB and more (NVLS off and on).
    time = seconds("all-reduce", 2**33, Group(ranks=8))
    assert 3.0e11 < 2 * 2**33 * 7 / 8 / time < 4.8e11


def test_small_messages_take_trees_large_ones_rings() -> None:
    wide = Group(ranks=128, stride=8)
    ring_latency = 2 * 127 * H100.links.scaleout_hop_s
    assert seconds("all-reduce", 8.0, wide) < ring_latency
    large = 1e11
    simple = 14e-6  # NCCL's hop through the network by its Simple protocol, which gives the links whole
    exact = 2 * large * 127 / 128 / H100.links.scaleout + 2 * 127 * simple + H100.links.launch_s
    assert seconds("all-reduce", large, wide) == pytest.approx(exact)


def test_rings_between_nodes_pass_every_rank() -> None:
    def latency(ranks: int) -> float:
        return seconds("all-gather", 8.0, Group(ranks=ranks)) - H100.links.launch_s

    # LL hops: seven over NVLink and one through the network (2.7 us) for each further node; there is no tree to take.
    node = 7 * H100.links.scaleup_hop_s
    assert latency(1536) == pytest.approx(192 * node + 191 * 2.7e-6, rel=1e-3)
    assert latency(1536) / latency(768) == pytest.approx(2, rel=0.01)


def test_sends_use_the_level_that_joins_the_neighbours() -> None:
    near, far = seconds("send", 1e9, Group(ranks=2, stride=1)), seconds("send", 1e9, Group(ranks=2, stride=8))
    assert far / near == pytest.approx(H100.links.scaleup / H100.links.scaleout, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_is_free_and_arrays_equal_scalars(kind: CollectiveKind) -> None:
    quantise = Elementwise(name="quantise", rows=1e6, width=1)
    n = np.array([1, 2, 8, 64])

    def ask(ranks: int | np.ndarray) -> Collective:
        return Collective(kind=kind, bytes=1e8, group=Group(ranks=ranks), name="x", overhead=(quantise,))

    together = H100.collective(ask(n))
    assert together.seconds[0] == 0
    for i, ranks in enumerate(n):
        alone = H100.collective(ask(int(ranks)))
        assert together.seconds[i] == pytest.approx(float(alone.seconds), rel=1e-12)
        for name, share in alone.demands.items():
            assert np.broadcast_to(together.demands[name], 4)[i] == pytest.approx(float(share), rel=1e-9, abs=1e-15)
            assert 0 <= float(share) <= 1


# Bus bandwidth, bytes/s, of NCCL collectives of 16-bit elements measured in aiconfigurator-core 0.12.0.
MEASURED = [
    ("a100-sxm-80gb", "all-reduce", 8, 8, 115e9),
    ("a100-sxm-80gb", "all-reduce", 8, 64, 197e9),
    ("a100-sxm-80gb", "all-gather", 8, 32, 135e9),
    ("a100-sxm-80gb", "reduce-scatter", 4, 128, 187e9),
    ("h100-sxm", "all-gather", 8, 16, 217e9),
    ("h100-sxm", "reduce-scatter", 8, 128, 308e9),
    ("b200-sxm", "all-gather", 8, 128, 560e9),
    ("b200-sxm", "all-reduce", 4, 32, 420e9),
]


@pytest.mark.parametrize(("device", "kind", "n", "mebibytes", "bandwidth"), MEASURED)
def test_measured_collectives(device: str, kind: CollectiveKind, n: int, mebibytes: float, bandwidth: float) -> None:
    model = Roofline(parse_cluster(f"{device}:8"))
    size = mebibytes * 2**20
    found = float(model.collective(Collective(kind=kind, bytes=size, group=Group(n), name="x")).seconds)
    launched = found - model.constants["collective.launch_s"] + model.constants["collective.graph_launch_s"]
    assert float(sent_bytes(kind, size, n)) / launched == pytest.approx(bandwidth, rel=0.2)


def test_short_transfers_do_not_reach_the_bandwidth_of_long_ones() -> None:
    rates = [2**e / seconds("all-gather", 2.0**e, Group(8)) for e in range(16, 32, 3)]
    assert all(low < high for low, high in itertools.pairwise(rates))


def test_a_group_of_a_torus_has_the_links_of_its_axes() -> None:
    model = Roofline(parse_cluster("tpu-v5p:512"))  # 8 x 8 x 8

    def bandwidth(n: int) -> float:
        collective = Collective(kind="all-gather", bytes=1e10, group=Group(n), name="x")
        return float(sent_bytes("all-gather", 1e10, n)) / float(model.collective(collective).seconds)

    assert bandwidth(64) == pytest.approx(2 * bandwidth(8), rel=0.01)
    assert bandwidth(512) == pytest.approx(3 * bandwidth(8), rel=0.03)
