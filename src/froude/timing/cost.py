"""The `CostModel` contract: operator or collective, on a machine, with a software stack -> seconds, demands, source.

A cost is what the work takes when it runs alone. Its *demands* say which fraction of each of the device's resources it
uses while doing so; when tasks overlap, the program evaluators share the resources out and the work takes longer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import numpy as np

from froude.core.arrays import Array
from froude.machines.cluster import Group as Group
from froude.models.operator import Operator

CollectiveKind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "broadcast", "send"]


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One communication.

    Attributes:
        kind: what happens.
        bytes: size of the *whole* tensor on one rank before a reduction or after a gather; of the message for a send.
        group: who takes part.
        name: what it is for ("tp-forward", "gradients", "weights").
        count: how many times it runs.
        overhead: operators that run on the device as part of it (quantise, dequantise, cast).
        picks: choices a token makes, in an exchange that sends each rank (and over a network each domain) at most one
            copy of it; ``bytes`` counts a copy per choice. 0: all copies travel.
        hides_behind: name of the operators of the same pass that it runs alongside; only what outlasts them is exposed.
    """

    kind: CollectiveKind
    bytes: Array
    group: Group
    name: str
    count: Array = 1
    overhead: tuple[Operator, ...] = ()
    hides_behind: str = ""
    picks: Array = 0


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes when it runs alone.

    Attributes:
        seconds: duration.
        demands: resource name ("compute", "memory", "scaleup", "scaleout", "host") -> fraction of it in use meanwhile.
        source: where the figure came from.
    """

    seconds: Array
    demands: Mapping[str, Array] = field(default_factory=dict)
    source: str = ""

    def __add__(self, other: Cost) -> Cost:
        """One after the other: times add, demands are averaged over the time."""
        seconds = self.seconds + other.seconds
        safe = np.where(np.asarray(seconds) > 0, seconds, 1.0)
        demands = {
            name: (self.demands.get(name, 0.0) * self.seconds + other.demands.get(name, 0.0) * other.seconds) / safe
            for name in {*self.demands, *other.demands}
        }
        return Cost(seconds, demands, self.source if self.source == other.source else f"{self.source}; {other.source}")

    def times(self, count: Array) -> Cost:
        """The same work ``count`` times over."""
        return Cost(self.seconds * count, self.demands, self.source)


NOTHING = Cost(0.0)


class CostModel(ABC):
    """Prices work on one cluster under one software stack. All arguments may be arrays over candidates."""

    @abstractmethod
    def operator(self, op: Operator) -> Cost:
        """One operator, ``op.count`` times, alone on one device."""

    @abstractmethod
    def collective(self, collective: Collective) -> Cost:
        """One collective, ``collective.count`` times, with its overhead operators; nothing for one rank."""

    @abstractmethod
    def host_s(self, work_items: Sequence[Operator | Collective]) -> Array:
        """Host time to start the kernels of ``work_items``."""

    @abstractmethod
    def launch_s(self, kernels: Array) -> Array:
        """Host time to start ``kernels`` kernels."""

    @abstractmethod
    def pass_s(self, computed_s: Array, communicated_s: Array, kernels_s: Array, collectives_s: Array) -> Array:
        """What a pass takes on a device that its host must keep supplied.

        Args:
            computed_s, communicated_s: device time of its kernels, and of its blocking collectives.
            kernels_s, collectives_s: host time to start either.
        """

    @abstractmethod
    def exposed_tensor(self) -> float:
        """Fraction of tensor-parallel communication that the software stack cannot hide alongside its products."""

    @abstractmethod
    def exposed_exchange(self) -> float:
        """Fraction of exchanges of routed tokens that the software stack cannot hide alongside other work."""

    @abstractmethod
    def step_overhead_s(self) -> float:
        """Time of a training step that belongs to no layer and no collective."""

    @abstractmethod
    def straggling(self, nodes: Array) -> Array:
        """Factor by which the slowest of ``nodes`` nodes stretches synchronous work."""

    def sequence(self, work: Sequence[Operator | Collective]) -> Cost:
        """Work done one piece after the other on one device."""
        costs = [self.collective(w) if isinstance(w, Collective) else self.operator(w) for w in work]
        return reduce(Cost.__add__, costs, NOTHING)
