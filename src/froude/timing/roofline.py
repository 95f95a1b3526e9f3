"""The roofline: shape-dependent efficiency for compute, bytes for memory, hosts that start kernels, links that wait.

Williams, Waterman, Patterson (2009), "Roofline: an insightful visual performance model", doi:10.1145/1498765.1498785,
with a smooth maximum in place of the corner, tile and wave quantisation for products, and few global constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from froude.core.arrays import Array
from froude.machines.cluster import Cluster
from froude.models.operator import Attention, GroupedMatmul, Move, Operator
from froude.timing.collectives import Links, collective_cost
from froude.timing.constants import Constants, default_constants
from froude.timing.cost import Collective, Cost, CostModel
from froude.timing.kernels import Rates, Work, work
from froude.timing.measured import MeasuredKernels
from froude.timing.stack import Stack, find_stack
from froude.timing.tables import MeasuredTables

WRITTEN_OUT = ("unfused", "fused-softmax")
"""Attention kernels that write the scores out; tables are of kernels that do not."""


def smooth_max(first: Array, second: Array, power: float) -> Array:
    """``(a^p + b^p)^(1/p)``: the larger of the two, a little more where they are alike. Never below either."""
    larger = np.maximum(first, second)
    safe = np.where(larger > 0, larger, 1.0)
    return larger * (1.0 + (np.minimum(first, second) / safe) ** power) ** (1.0 / power)


def _corrected(cost: Cost, factor: Array | None) -> Cost:
    """The same work in ``factor`` of the time; it uses that much more of each resource meanwhile."""
    if factor is None:
        return cost
    demands = {name: np.minimum(1.0, share / factor) for name, share in cost.demands.items()}
    return Cost(cost.seconds * factor, demands, f"{cost.source} and measured tables")


def _routed(op: Operator) -> bool:
    """Whether its size depends on the routing of tokens, so that no graph captured beforehand contains it."""
    return isinstance(op, GroupedMatmul | Move) or op.name.startswith("experts-")


@dataclass(frozen=True)
class Roofline(CostModel):
    """Prices work on ``cluster`` under ``stack``; measured parameters of the device override the catalogue's."""

    cluster: Cluster
    stack: Stack = field(default_factory=lambda: find_stack("megatron"))
    constants: Constants = field(default_factory=default_constants)
    clock: float = 1.0  # of the cores, relative to what jobs sustain

    @cached_property
    def rates(self) -> Rates:
        """What one device delivers."""
        return Rates(self.cluster.device, self.stack, self.constants, self.clock)

    @cached_property
    def links(self) -> Links:
        """What its links deliver."""
        return Links.of(
            self.cluster, self.constants, direct=self.stack.all_reduce == "direct", dispatch=self.stack.dispatch
        )

    @cached_property
    def measured(self) -> MeasuredKernels:
        """Curves measured on the very machine, where there are any."""
        return MeasuredKernels.of(self.cluster.device)

    @property
    def isolated(self) -> Roofline:
        """The same machine running single kernels: burst clocks, its generation's attention kernel, no casts."""
        device = self.cluster.device
        clocks = {name: 1.0 for name in self.constants.table if name.startswith("clock.")}
        attention = "flash-2" if self.constants.generation(device.name) == "ampere" else "flash-3"
        return replace(
            self,
            cluster=self.cluster.model_copy(update={"device": device.model_copy(update={"tables": {}})}),
            stack=find_stack("megatron").but(attention=attention, casts="fused", experts=self.stack.experts),
            constants=self.constants.but(clocks, "isolated kernels"),
        )

    @cached_property
    def tables(self) -> MeasuredTables | None:
        """Kernels measured on devices of this kind, where the device brings tables."""
        device = self.cluster.device
        if not device.tables:
            return None
        return MeasuredTables.of(device.tables, self.isolated, self.cluster.scaleup_domain)

    @property
    def _own_exchanges(self) -> set[str]:
        """Collectives of kernels of the stack's own; tables are of the library's."""
        own = {"all-reduce": self.stack.all_reduce == "direct", "all-to-all": self.stack.dispatch != "all-to-all"}
        return {kind for kind, differs in own.items() if differs}

    def operator(self, op: Operator) -> Cost:
        """As measured on this machine; else a smooth maximum of arithmetic and traffic, and the gap between kernels."""
        measured_s = self.measured.operator_s(op)
        if measured_s is not None:
            return Cost(measured_s, {"compute": 1.0}, "measured on this machine").times(op.count)
        need: Work = work(op, self.rates)
        smoothness = self.constants["gemm.smoothness"] if need.smoothness is None else need.smoothness
        busy_s = smooth_max(need.compute_s, need.memory_s, smoothness)
        busy_s = busy_s + need.apart_s
        seconds = np.where(busy_s > 0, busy_s + need.kernels * self.rates.gap_s, 0.0) + need.stall_s
        safe = np.where(seconds > 0, seconds, 1.0)
        demands = {"compute": need.compute_s / safe, "memory": (need.memory_s + need.apart_s) / safe}
        source = "measured on this machine" if self.rates.own_machine else f"roofline of {self.cluster.device.name}"
        cost = Cost(seconds, demands, source)
        if self.tables is not None and not (isinstance(op, Attention) and self.stack.attention in WRITTEN_OUT):
            cost = _corrected(cost, self.tables.operator_factor(op))
        return cost.times(op.count)

    def collective(self, collective: Collective) -> Cost:
        """The slower level's bandwidth and the latencies of both; overhead operators follow."""
        measured_s = self.measured.collective_s(collective)
        if measured_s is not None:
            cost = Cost(measured_s, {}, "measured on this machine")
        else:
            cost = collective_cost(collective, self.links)
            if self.tables is not None and collective.kind not in self._own_exchanges:
                cost = _corrected(cost, self.tables.collective_factor(collective, self.cluster.scaleup_domain))
        alone = np.less_equal(collective.group.ranks, 1)
        for op in collective.overhead:
            extra = self.operator(op)
            cost = cost + Cost(np.where(alone, 0.0, extra.seconds), extra.demands, extra.source)
        return cost.times(collective.count)

    def host_s(self, work_items: Sequence[Operator | Collective]) -> Array:
        """Host time to start every kernel of ``work_items``."""
        total: Array = 0.0
        for item in work_items:
            if isinstance(item, Collective):
                ranks = np.maximum(item.group.ranks, 1)
                seconds: Array = self.rates.collective_launch_s * np.log2(ranks) + np.where(
                    ranks > 1, self.launch_s(len(item.overhead)), 0.0
                )
            else:
                need = work(item, self.rates)
                launches = need.kernels if need.launches is None else need.launches
                captured = self.stack.host == "partial-graphs" and not _routed(item)
                seconds = launches * self.rates.launch_s(captured=captured) + need.host_s
            total = total + seconds * item.count
        return total

    def launch_s(self, kernels: Array) -> Array:
        """Host time to start ``kernels`` kernels."""
        return kernels * self.rates.launch_s()

    def pass_s(self, computed_s: Array, communicated_s: Array, kernels_s: Array, collectives_s: Array) -> Array:
        """About the larger of device time and host time.

        Traces of single layers show what waiting for the host adds to kernels, the device drained before and after;
        collectives that a simulator puts between them hide none of it.
        """
        power = self.constants["host.smoothness"]
        if self.stack.host == "traced":
            alone = smooth_max(computed_s, kernels_s, power)
            return alone + self.constants["host.traced.drain_s"] + communicated_s + collectives_s
        if self.stack.launches == "blocking":
            return computed_s + communicated_s + kernels_s + collectives_s
        return smooth_max(computed_s + communicated_s, kernels_s + collectives_s, power)

    def exposed_tensor(self) -> float:
        """Fraction of tensor-parallel communication that this stack cannot hide alongside its products."""
        return self.constants[f"exposed.tensor.{self.stack.tensor_overlap}"]

    def exposed_exchange(self) -> float:
        """Fraction of exchanges of routed tokens that this stack cannot hide alongside other work."""
        return self.constants[f"exposed.exchange.{self.stack.exchange_overlap}"]

    def step_overhead_s(self) -> float:
        """Time of a step that belongs to no layer."""
        if self.rates.own_machine or self.stack.host == "traced":
            return 0.0
        return self.constants["step.overhead_s"]

    def straggling(self, nodes: Array) -> Array:
        """Factor by which the slowest of ``nodes`` nodes stretches a synchronous step; added-up traces know none."""
        if self.stack.host == "traced":
            return 1.0
        return 1.0 + self.constants["step.straggler_per_doubling"] * np.log2(np.maximum(nodes, 1))
