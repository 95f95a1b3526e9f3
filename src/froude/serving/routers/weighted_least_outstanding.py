"""Weighted least connections: requests in progress in proportion to what each replica can hold.

For fleets whose replicas differ; with equal weights it is `least-outstanding`.
Source: Zhang (2000), Linux Virtual Server for Scalable Network Services, Ottawa Linux Symposium (WLC scheduling).
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from froude.core.registry import Source
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


class WeightedLeastOutstanding(Router):
    """Fewest requests in progress per unit of weight; replicas without a weight have weight 1."""

    name = "weighted-least-outstanding"
    source = Source("Zhang", 2000, "Linux Virtual Server for Scalable Network Services", "Ottawa Linux Symposium")

    def __init__(self, weights: Items[float] = ()) -> None:
        self.weights = list(weights)

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """The least loaded once it has the request too, the first of equals."""
        weights = self.weights or [1.0] * len(replicas)
        loads = [(replica.outstanding + 1) / weight for replica, weight in zip(replicas, weights, strict=True)]
        return loads.index(min(loads))
