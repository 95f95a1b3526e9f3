"""Who acts on a fleet while it serves: takes requests from one replica and gives them to another, at times of its own.

A `Conductor` cannot see into an iteration. At a time that it names it gives *orders* to replicas; a replica carries
them out at the end of the iteration that is running, or at once when it is idle. So both simulators, jumping and
stepping, show an order the same state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Items
from heapq import heappop, heappush
from typing import Any, Protocol

from froude.serving.autoscaling import ScalingRouter
from froude.serving.iteration import IterationTime
from froude.serving.outcome import NO_TIME
from froude.serving.policy import Sequence, View
from froude.serving.router import Replica, Router


class Engine(Replica, Protocol):
    """A replica as an order finds it, between two iterations."""

    @property
    def view(self) -> View:
        """What its scheduler sees; counts of single sequences are exact in `View.running` only."""

    def order(self, carry_out: Order, now_ps: int) -> None:
        """Have something done at the end of the running iteration."""

    def withdraw(self, sequence: Sequence) -> None:
        """Take a running sequence out; it gives its blocks back and keeps its counts."""

    def drain(self) -> list[Sequence]:
        """Take out all that wait, in the order of the queue; nothing is kept of what was computed."""

    def insert(self, sequence: Sequence) -> None:
        """Put a sequence at the head of the queue, with what is computed of it."""

    def let_go(self, sequence: Sequence) -> None:
        """Free the blocks of a sequence that is done and was parked."""

    def set_aside(self, sequence: Sequence) -> bool:
        """Hold blocks and a place for a sequence that comes with its cache, unless there is no room."""

    def adopt(self, sequence: Sequence) -> None:
        """A sequence for which blocks and a place were set aside goes on generating here."""

    def retime(self, time: IterationTime) -> None:
        """Iterations take another time from now on."""


Order = Callable[[Engine, int], None]
"""Carried out by an engine, with the time."""


class Conductor(ABC):
    """Acts on a fleet. Keeps a calendar; subclasses put things in with `at` and begin with `begin`."""

    def __init__(self) -> None:
        self._calendar: list[tuple[int, int, Callable[[int, Items[Engine]], None]]] = []
        self._entries = 0
        self.carried = 0  # requests that are with no replica at present

    @property
    def next_ps(self) -> int:
        """When it acts next."""
        return self._calendar[0][0] if self._calendar else NO_TIME

    def at(self, time_ps: int, do: Callable[[int, Items[Engine]], None]) -> None:
        """Note something to be done."""
        heappush(self._calendar, (time_ps, self._entries, do))
        self._entries += 1

    def act(self, now_ps: int, fleet: Items[Engine]) -> None:
        """Do what is due; it must be finished with ``now_ps`` itself."""
        while self._calendar and self._calendar[0][0] <= now_ps:
            heappop(self._calendar)[2](now_ps, fleet)

    def give(self, sequences: list[Sequence], replica: int, at_ps: int) -> None:
        """Hand requests that are with no replica to one, at a time, in this order."""

        def hand(now_ps: int, fleet: Items[Engine]) -> None:
            def insert(engine: Engine, _: int) -> None:
                for sequence in reversed(sequences):
                    engine.insert(sequence)
                self.carried -= len(sequences)

            fleet[replica].order(insert, now_ps)

        self.at(at_ps, hand)

    def route(self, sequence: Sequence, fleet: Items[Engine], router: Router) -> int | None:
        """Which replica takes a new request; None to hold it back (count it in `carried`, and give it later).

        Replicas may have begun an iteration at this very moment: what it leads to is due a picosecond later.
        """
        return router.route(sequence, fleet)

    def complete(self, sequence: Sequence, replica: int, now_ps: int) -> bool:
        """A replica has done what it was given of a request: whether that is all of the request."""
        return True

    @abstractmethod
    def begin(self, fleet: Items[Engine]) -> None:
        """The fleet starts, at time zero."""

    def summary(self) -> dict[str, Any]:
        """What it did, in the words of its figures."""
        return {}

    def going_on(self, fleet: Items[Engine]) -> bool:
        """Whether anyone still works on a request."""
        return self.carried > 0 or any(engine.outstanding for engine in fleet)


def replica_for(
    sequence: Sequence, fleet: Items[Engine], router: Router | ScalingRouter | None, conductor: Conductor | None
) -> int | None:
    """Which replica takes a new request: as the conductor says, else the router; None where it is held back."""
    if router is None:
        return 0
    if conductor is None or isinstance(router, ScalingRouter):
        return router.route(sequence, fleet)
    return conductor.route(sequence, fleet, router)
