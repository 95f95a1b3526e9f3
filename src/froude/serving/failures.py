"""Replicas that fail: their requests start again elsewhere, from their prompts and what they had generated.

Each replica fails after an exponentially distributed time, is repaired after a fixed one, and comes back with an empty
cache. Its requests are sent again as soon as the failure is noticed; tokens that clients have got are not generated
twice, but computed again. While all replicas are down, requests wait for the first to come back.
Source: exponential times between failures, as measured on large clusters by Kokolis et al. (2024), Revisiting
Reliability in Large-Scale Machine Learning Research Clusters, arXiv:2410.21680.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from froude.core.errors import InvalidValueError
from froude.core.knobs import parse_knobs
from froude.serving.conductor import Conductor, Engine
from froude.serving.policy import Sequence
from froude.serving.router import Router

PS = 1e12
_KNOBS = {"mtbf": 0.0, "repair": 300.0, "notice": 1.0, "seed": 0.0}


class Failures(Conductor):
    """Attributes:
    mtbf_s: mean time between failures of one replica.
    repair_s: from a failure until the replica serves again.
    notice_s: until its requests are sent elsewhere.
    failures: how many there were.
    """

    def __init__(self, mtbf_s: float, repair_s: float = 300.0, notice_s: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        self.mtbf_s, self.repair_s, self.notice_s = mtbf_s, repair_s, notice_s
        self.failures = 0
        self._rng = np.random.default_rng((seed, 7))
        self._up: list[int] = []
        self._held: list[Sequence] = []
        self._router: Router | None = None

    @classmethod
    def parse(cls, text: str) -> Failures:
        """``mtbf=3600,repair=300,notice=1,seed=0``, times in seconds.

        Raises:
            InvalidValueError: naming an unknown knob, or a value out of range.
        """
        knobs = parse_knobs("failures", text, _KNOBS)
        if not knobs["mtbf"] > 0 or not knobs["repair"] > 0 or not knobs["notice"] >= 0:
            raise InvalidValueError("failures", text, "needs mtbf and repair above 0 seconds, such as mtbf=3600")
        return cls(knobs["mtbf"], knobs["repair"], knobs["notice"], int(knobs["seed"]))

    def begin(self, fleet: Items[Engine]) -> None:
        """All replicas are up."""
        self._up = list(range(len(fleet)))
        for replica in self._up:
            self._plan(replica, 0)

    def route(self, sequence: Sequence, fleet: Items[Engine], router: Router) -> int | None:
        """Among those that are up."""
        self._router = router
        if not self._up:
            self.carried += 1
            self._held.append(sequence)
            return None
        return self._up[router.route(sequence, [fleet[i] for i in self._up])]

    def summary(self) -> dict[str, Any]:
        """How many failures."""
        return {"failures": self.failures}

    def _plan(self, replica: int, now_ps: int) -> None:
        after_ps = max(1, round(self._rng.exponential(self.mtbf_s) * PS))
        self.at(now_ps + after_ps, lambda now, fleet: self._fail(replica, now, fleet))

    def _fail(self, replica: int, now_ps: int, fleet: Items[Engine]) -> None:
        self.failures += 1
        self._up.remove(replica)

        def lose(engine: Engine, now_ps: int) -> None:
            lost = engine.view.running()
            for sequence in lost:
                engine.withdraw(sequence)
                sequence.computed_tokens = 0
            lost += engine.drain()
            self.carried += len(lost)
            self.at(now_ps + 1 + round(self.notice_s * PS), lambda now, fleet: self._send(lost, now, fleet))

        fleet[replica].order(lose, now_ps)
        self.at(now_ps + round(self.repair_s * PS), lambda now, fleet: self._repair(replica, now, fleet))

    def _repair(self, replica: int, now_ps: int, fleet: Items[Engine]) -> None:
        self._up = sorted([*self._up, replica])
        self._plan(replica, now_ps)
        held, self._held = self._held, []
        self._send(held, now_ps, fleet)

    def _send(self, sequences: list[Sequence], now_ps: int, fleet: Items[Engine]) -> None:
        """To the replicas that are up, as the router says."""
        if not self._up:
            self._held += sequences
            return
        chosen: dict[int, list[Sequence]] = {}
        for sequence in sequences:
            place = 0
            if self._router is not None and len(self._up) > 1:
                place = self._router.route(sequence, [fleet[i] for i in self._up])
            chosen.setdefault(self._up[place], []).append(sequence)
        for replica, those in sorted(chosen.items()):
            self.give(those, replica, now_ps)
