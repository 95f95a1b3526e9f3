"""Collectives by latency and bandwidth over the hierarchy: scale-up domain first, scale-out network beyond it.

The model of Hockney, R. (1994), "The communication challenge for MPP", with the ring and tree algorithms of NCCL, which
pipeline the two levels: the slower level sets the bandwidth, the latencies of both add. The library takes the faster
algorithm and protocol for the size at hand. Short transfers over the fast links ramp up to their bandwidth.

A ring passes every rank, so its latency grows with their number: over many nodes it is what small gathers wait for. A
tree is a chain within a node and logarithmic between nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Array
from froude.machines.cluster import Cluster, Group
from froude.timing.constants import Constants
from froude.timing.cost import Collective, CollectiveKind, Cost

TREES: tuple[CollectiveKind, ...] = ("all-reduce", "broadcast")


@dataclass(frozen=True)
class Protocol:
    """How NCCL hands data on between nodes: its share of bandwidth, and its hops in units of the cluster's."""

    share: float
    scaleup_hops: float
    scaleout_hops: float


PROTOCOLS = (
    Protocol(share=0.5, scaleup_hops=1.0, scaleout_hops=2.7 / 4.0),
    Protocol(share=0.92, scaleup_hops=1.9 / 0.6, scaleout_hops=1.0),
    Protocol(share=1.0, scaleup_hops=3.4 / 0.6, scaleout_hops=14.0 / 4.0),
)
"""LL, LL128 and Simple, in NCCL's own tuning model (NVIDIA NCCL, src/graph/tuning.cc: hwLat of rings over NVLink and
the network, and what LL and LL128 reach of a link). A cluster's hops are those of LL over NVLink and LL128 over the
network."""


@dataclass(frozen=True)
class Links:
    """What one rank sends at on each level, and what one hop takes."""

    domain: int
    scaleup: float
    scaleout: float
    scaleup_hop_s: float
    scaleout_hop_s: float
    launch_s: float
    tree_efficiency: float
    compute_share: float
    memory: float
    ramp_s: float = 0.0
    ramp_power: float = 1.0
    torus_axes: int = 1
    devices: int = 1
    direct_s: float | None = None
    exchange: float | None = None

    @classmethod
    def of(cls, cluster: Cluster, constants: Constants, *, direct: bool = False, dispatch: str = "all-to-all") -> Links:
        """Links of a cluster; those measured on the very machine (gloo on a computer, say) where there are any.

        Devices whose scale-up link is the PCIe slot itself exchange through host memory, unless switches let them reach
        each other: every byte is written there and read back. ``direct`` lets small all-reduces read the peers'
        memory, where links allow; ``dispatch`` says whose kernels exchange tokens.
        """
        device = cluster.device
        measured = device.measured.get("collective_bandwidth")
        if measured is not None:
            step_s = device.measured.get("collective_latency_s", 0.0)
            return cls(cluster.count, measured, measured, step_s, step_s, 0.0, 1.0, 1.0, device.memory_bandwidth)
        through_host = not cluster.peer_to_peer and 0.0 < cluster.scaleup_bandwidth <= device.host_bandwidth
        reached = constants["link.through_host" if through_host else "link.scaleup_efficiency"]
        return cls(
            domain=cluster.scaleup_domain,
            scaleup=cluster.scaleup_bandwidth * reached,
            scaleout=cluster.scaleout_bandwidth * constants["link.scaleout_efficiency"],
            scaleup_hop_s=cluster.scaleup_latency_s,
            scaleout_hop_s=cluster.scaleout_latency_s,
            launch_s=constants["collective.graph_launch_s" if direct else "collective.launch_s"],
            tree_efficiency=constants["link.tree_efficiency"],
            compute_share=constants["collective.compute_share"],
            memory=device.memory_bandwidth,
            ramp_s=constants.of_generation("link.ramp_s", device.name),
            ramp_power=constants["link.ramp_power"],
            torus_axes=device.torus_axes,
            devices=min(cluster.count, cluster.scaleup_domain),
            direct_s=constants.of_generation("collective.direct_s", device.name)
            if direct and not through_host
            else None,
            exchange=None
            if through_host
            else cluster.scaleup_bandwidth * constants[f"link.exchange_efficiency.{dispatch}"],
        )

    def scaleup_s(self, size: Array, ranks: Array) -> Array:
        """Seconds to send ``size`` bytes inside the domain.

        Short transfers do not reach the bandwidth of long ones: protocols change with size, and the pipeline over
        channels and chunks must fill. In a torus a group has the links of the axes it spans.
        """
        whole: Array = _over(size, self.scaleup)
        if self.torus_axes > 1:
            share = np.log(np.maximum(ranks, 2.0)) / np.log(max(self.devices, 2))
            whole = whole * self.torus_axes / np.clip(np.round(self.torus_axes * share), 1.0, self.torus_axes)
        seconds: Array = whole + whole ** (1.0 - self.ramp_power) * self.ramp_s**self.ramp_power
        return seconds


def sent_bytes(kind: CollectiveKind, size: Array, ranks: Array) -> Array:
    """Bytes each rank sends in all: what a ring moves, the least that is possible without in-network reduction."""
    if kind == "send":
        return np.where(np.greater(ranks, 1), size, 0.0)
    share = np.subtract(ranks, 1.0) / ranks
    if kind == "all-reduce":
        return 2.0 * size * share
    if kind == "broadcast":
        return np.where(np.greater(ranks, 1), size, 0.0)
    return size * share


def level_bytes(kind: CollectiveKind, size: Array, group: Group, domain: int, picks: Array = 0) -> tuple[Array, Array]:
    """Bytes each rank sends inside its scale-up domain and through its own network port.

    A reduction or gather crosses domains once per domain, not once per rank, and every rank of the group in the domain
    carries a part through its own port: those are the lanes. An exchange sends each rank a share of its own; one that
    sends no copy twice crosses to a domain once and is passed on there.
    """
    near = group.inside(domain)
    far = group.domains(domain)
    if kind == "send":
        local = np.greater_equal(near, 2)
        moved = sent_bytes(kind, size, group.ranks)
        return np.where(local, moved, 0.0), np.where(local, 0.0, moved)
    if kind == "all-to-all" and np.any(picks):
        once = size / picks
        visited, abroad = (n * (1.0 - (1.0 - 1.0 / n) ** picks) for n in (group.ranks, far))
        return once * visited * (1.0 - 1.0 / near), once * abroad * (1.0 - 1.0 / far)
    if kind == "all-to-all":
        return size * (near - 1.0) / group.ranks, size * (group.ranks - near) / group.ranks
    return sent_bytes(kind, size, near), sent_bytes(kind, np.divide(size, near), far)


def collective_cost(work: Collective, links: Links) -> Cost:
    """Time and demands of one run of ``work``, its overhead operators apart."""
    group = work.group
    near, far = group.inside(links.domain), group.domains(links.domain)
    up_bytes, out_bytes = level_bytes(work.kind, work.bytes, group, links.domain, work.picks)
    exchanged = work.kind == "all-to-all" and links.exchange is not None
    up_s = _over(up_bytes, links.exchange or 0.0) if exchanged else links.scaleup_s(up_bytes, near)
    out_s = _over(out_bytes, links.scaleout)
    transfer_s = np.maximum(up_s, out_s)
    if work.kind == "send":
        latency_s = np.where(np.greater_equal(near, 2), links.scaleup_hop_s, links.scaleout_hop_s)
        seconds = transfer_s + latency_s
    elif work.kind == "all-to-all":
        seconds = (
            transfer_s + np.where(near > 1, links.scaleup_hop_s, 0.0) + np.where(far > 1, links.scaleout_hop_s, 0.0)
        )
    else:
        seconds = np.where(
            far > 1,
            _between_nodes_s(work.kind, transfer_s, near, far, links),
            _in_node_s(work.kind, transfer_s, near, links),
        )
    seconds = seconds + links.launch_s
    if work.kind == "all-reduce" and links.direct_s is not None:
        seconds = np.where(
            far > 1, seconds, np.minimum(seconds, _direct_s(work.bytes, near, links.direct_s, links.scaleup))
        )
    alone = np.less_equal(group.ranks, 1)
    seconds = np.where(alone, 0.0, seconds)
    safe = np.where(seconds > 0, seconds, 1.0)
    moved = up_bytes + out_bytes
    demands = {
        "scaleup": np.minimum(1.0, up_s / safe),
        "scaleout": np.minimum(1.0, out_s / safe),
        "memory": np.minimum(1.0, 2.0 * moved / links.memory / safe),  # read here, written there
        "compute": np.where(alone, 0.0, links.compute_share),
    }
    return Cost(seconds, demands, "latency and bandwidth, ring or tree")


def _in_node_s(kind: CollectiveKind, transfer_s: Array, ranks: Array, links: Links) -> Array:
    """A ring inside one domain, or a tree; what protocols cost is in the ramp of the transfer."""
    rounds = _rounds(kind)
    seconds = transfer_s + rounds * (ranks - 1.0) * links.scaleup_hop_s
    if kind in TREES:
        tree_s = transfer_s / links.tree_efficiency + rounds * np.log2(ranks) * links.scaleup_hop_s
        seconds = np.minimum(seconds, tree_s)
    return seconds


def _between_nodes_s(kind: CollectiveKind, transfer_s: Array, near: Array, far: Array, links: Links) -> Array:
    """The fastest protocol of a ring through all ranks of all domains, or of a tree of chains."""
    rounds = _rounds(kind)
    seconds: Array = np.inf
    for protocol in PROTOCOLS:
        up_s, out_s = protocol.scaleup_hops * links.scaleup_hop_s, protocol.scaleout_hops * links.scaleout_hop_s
        moved_s = transfer_s / protocol.share
        ring_s = moved_s + rounds * (far * (near - 1.0) * up_s + (far - 1.0) * out_s)
        seconds = np.minimum(seconds, ring_s)
        if kind in TREES:
            tree_s = moved_s / links.tree_efficiency + rounds * ((near - 1.0) * up_s + np.log2(far) * out_s)
            seconds = np.minimum(seconds, tree_s)
    return seconds


def _rounds(kind: CollectiveKind) -> float:
    """Times that data goes round: reduced and handed out again, or once."""
    return 2.0 if kind == "all-reduce" else 1.0


def _direct_s(size: Array, ranks: Array, start_s: float, rate: float) -> Array:
    """One kernel that reads all peers' inputs; or two that share the sum out and gather it, for larger ones."""
    once = start_s + _over(size * (ranks - 1.0), rate)
    twice = 2.0 * start_s + _over(2.0 * size * (ranks - 1.0) / ranks, rate)
    return np.minimum(once, twice)


def _over(size: Array, rate: float) -> Array:
    """Seconds; infinite where bytes must cross a link that does not exist."""
    if rate > 0:
        return np.divide(size, rate)
    return np.where(np.greater(size, 0), np.inf, 0.0)
