"""Replicas that come and go: a controller says how many, a new one takes a while to start.

The controller looks at the fleet at times that it names, until the last request has arrived. A replica that is not
wanted any more gets no new requests and is given back at the first look at which it is empty; wanted again before that,
it takes requests at once. A replica is paid for from the moment it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TypeAlias

from froude.core.errors import InvalidValueError
from froude.core.knobs import parse_knobs
from froude.core.registry import Registry
from froude.program.controller import Controller
from froude.serving.outcome import NO_TIME
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


@dataclass(frozen=True, slots=True)
class FleetObservation:
    """What a scaler sees.

    Attributes:
        now_s: time.
        serving, starting: replicas that take requests, and that will.
        outstanding: requests in progress on all replicas together.
    """

    now_s: float
    serving: int
    starting: int
    outstanding: int


Scaler: TypeAlias = Controller[FleetObservation, int]
"""Says how many replicas there should be."""

SCALERS: Registry[Scaler] = Registry("scaler", "froude.serving.scalers", Controller)


@dataclass(frozen=True)
class Autoscaling:
    """Bounds of a fleet that scales, and how.

    Attributes:
        scaler: name of the controller.
        least, most: replicas; it begins with ``least``.
        start_s: from asking for a replica to its first request: machine, image, weights, warm-up.
        target: requests in progress that a replica should have.
    """

    scaler: str
    least: int = 1
    most: int = 8
    start_s: float = 120.0
    target: float = 16.0

    @classmethod
    def parse(cls, text: str) -> Autoscaling:
        """``kubernetes-hpa:min=1,max=8,start=120,target=16``.

        Raises:
            FroudeError: naming an unknown scaler or knob, or a value out of range.
        """
        name, _, rest = text.partition(":")
        SCALERS.get(name)
        known = parse_knobs("autoscale", rest, {"min": 1.0, "max": 8.0, "start": 120.0, "target": 16.0})
        if not 1 <= known["min"] <= known["max"] or not known["target"] > 0 or not known["start"] >= 0:
            raise InvalidValueError("autoscale", text, "needs 1 <= min <= max, target above 0 and start at least 0")
        return cls(name, int(known["min"]), int(known["max"]), known["start"], known["target"])


class ScalingRouter:
    """Which replicas take requests, over time; routes among them. The same object for jumping and stepping.

    ``next_ps`` is when `act` must be called next, with all iterations that end by then already ended.
    """

    def __init__(self, scaling: Autoscaling, router: Router) -> None:
        self.scaling, self.router = scaling, router
        self.controller: Scaler = SCALERS.create(scaling.scaler, target=scaling.target)
        self.serving = list(range(scaling.least))
        self.starting: list[tuple[int, int]] = []  # (when ready, replica)
        self.draining: list[int] = []
        self.since = dict.fromkeys(self.serving, 0)  # paid for since
        self.paid_ps = 0
        self._look_ps = self._after(-1)

    @property
    def next_ps(self) -> int:
        """The next look, or the next replica to be ready."""
        return min([self._look_ps, *(ready for ready, _ in self.starting)])

    def _after(self, now_ps: int) -> int:
        at_s = self.controller.next_change_s(now_ps / 1e12)
        return NO_TIME if math.isinf(at_s) else max(now_ps + 1, math.ceil(at_s * 1e12))

    def act(self, now_ps: int, replicas: Items[Replica]) -> None:
        """Replicas that are ready join; the controller looks, if it is time."""
        for item in sorted(self.starting):
            if item[0] <= now_ps:
                self.starting.remove(item)
                self.serving.append(item[1])
        self.serving.sort()
        if now_ps < self._look_ps:
            return
        self._look_ps = self._after(now_ps)
        for index in [i for i in self.draining if not replicas[i].outstanding]:
            self.draining.remove(index)
            self.paid_ps += now_ps - self.since.pop(index)
        seen = FleetObservation(
            now_ps / 1e12, len(self.serving), len(self.starting), sum(r.outstanding for r in replicas)
        )
        wanted = min(max(self.controller.observe(seen), self.scaling.least), self.scaling.most)
        self._grow(wanted, now_ps)
        while len(self.serving) + len(self.starting) > wanted and len(self.serving) > self.scaling.least:
            self.draining.append(self.serving.pop())

    def _grow(self, wanted: int, now_ps: int) -> None:
        while len(self.serving) + len(self.starting) < wanted and self.draining:
            self.serving.append(self.draining.pop(0))
        self.serving.sort()
        while len(self.serving) + len(self.starting) < wanted:
            index = next(i for i in range(self.scaling.most) if i not in self.since)
            self.since[index] = now_ps
            self.starting.append((now_ps + round(self.scaling.start_s * 1e12), index))

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """Among those that serve."""
        return self.serving[self.router.route(sequence, [replicas[i] for i in self.serving])]

    def replica_ps(self, end_ps: int) -> int:
        """Replica-time paid for by then."""
        return self.paid_ps + sum(max(0, end_ps - since) for since in self.since.values())
