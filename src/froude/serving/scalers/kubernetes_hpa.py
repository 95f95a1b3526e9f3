"""Kubernetes' horizontal autoscaler: as many replicas as bring the load of each to a target.

Every period it asks for ``ceil(replicas x load / target)``, unless load and target differ by no more than a tolerance;
it scales down only to the highest count that it has asked for within a window. The load is requests in progress.
Source: Kubernetes documentation, Horizontal Pod Autoscaling (algorithm details: period 15 s, tolerance 0.1,
stabilisation of 300 s for scaling down).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from froude.core.registry import Source
from froude.program.controller import Controller
from froude.serving.autoscaling import FleetObservation


@dataclass
class KubernetesHpa(Controller[FleetObservation, int]):
    """Requests in progress per replica near ``target``."""

    name: ClassVar[str] = "kubernetes-hpa"
    source: ClassVar[Source] = Source(
        "Kubernetes",
        2026,
        "Horizontal Pod Autoscaling",
        "https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/",
    )
    target: float = 16.0
    period_s: float = 15.0
    tolerance: float = 0.1
    window_s: float = 300.0
    _asked: list[tuple[float, int]] = field(default_factory=list, init=False)

    def next_change_s(self, now_s: float) -> float:
        """Every period."""
        return (math.floor(now_s / self.period_s + 1e-9) + 1) * self.period_s

    def observe(self, observation: FleetObservation) -> int:
        """How many replicas there should be."""
        now_s = observation.now_s
        replicas = observation.serving + observation.starting
        ratio = observation.outstanding / (replicas * self.target)
        wanted = replicas if abs(ratio - 1.0) <= self.tolerance else math.ceil(replicas * ratio)
        self._asked = [*((t, n) for t, n in self._asked if now_s - t <= self.window_s), (now_s, wanted)]
        return max(n for _, n in self._asked) if wanted < replicas else wanted
