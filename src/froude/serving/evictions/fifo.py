"""First in, first out: what came first goes first, however often it was found.

Source: SGLang, ``--radix-eviction-policy fifo``; Belady (1966), A Study of Replacement Algorithms.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from froude.core.registry import Source
from froude.serving.eviction import EvictionPolicy


class Fifo(EvictionPolicy):
    """By the time at which it first fell idle."""

    name = "fifo"
    source = Source(
        "Belady", 1966, "A Study of Replacement Algorithms for a Virtual-Storage Computer", "doi:10.1147/sj.52.0078"
    )

    def __init__(self) -> None:
        super().__init__()
        self._came: dict[int, int] = {}
        self._line: list[tuple[int, int]] = []  # heap; units that are read stay in it until they are due
        self._waiting: set[int] = set()  # units in it
        self._count = 0

    def rest(self, units: Iterable[int]) -> None:
        """See `EvictionPolicy`."""
        for unit in units:
            self.units[unit] = None
            if unit not in self._came:
                self._count += 1
                self._came[unit] = self._count
            if unit not in self._waiting:
                self._waiting.add(unit)
                heappush(self._line, (self._came[unit], unit))

    def forget(self, unit: int) -> None:
        """See `EvictionPolicy`."""
        super().forget(unit)
        del self._came[unit]

    def evict(self) -> int:
        """See `EvictionPolicy`."""
        while True:
            came, unit = heappop(self._line)
            self._waiting.discard(unit)
            if unit not in self.units:
                continue
            if self._came[unit] != came:  # it was forgotten, and came again
                self._waiting.add(unit)
                heappush(self._line, (self._came[unit], unit))
                continue
            self.forget(unit)
            return unit
