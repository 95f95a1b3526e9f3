"""Least frequently used: what was found least often since it came goes first, the least recently used of equals.

Source: SGLang, ``--radix-eviction-policy lfu`` (hits of a node since it entered the tree).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from froude.core.registry import Source
from froude.serving.eviction import EvictionPolicy


class Lfu(EvictionPolicy):
    """By the number of readers that found it."""

    name = "lfu"
    source = Source("SGLang project", 2025, "LFUStrategy of the radix cache", "https://github.com/sgl-project/sglang")
    leaf_first = True

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, int] = {}
        self._latest: dict[int, int] = {}  # unit -> its entry that holds
        self._heap: list[tuple[int, int, int]] = []
        self._entries = 0

    def read(self, units: Iterable[int]) -> None:
        """See `EvictionPolicy`."""
        units = list(units)
        super().read(units)
        for unit in units:
            self._found[unit] = self._found.get(unit, 0) + 1

    def rest(self, units: Iterable[int]) -> None:
        """See `EvictionPolicy`."""
        for unit in units:
            self.units[unit] = None
            self._entries += 1
            self._latest[unit] = self._entries
            heappush(self._heap, (self._found.get(unit, 0), self._entries, unit))

    def forget(self, unit: int) -> None:
        """See `EvictionPolicy`."""
        super().forget(unit)
        self._found.pop(unit, None)
        del self._latest[unit]

    def evict(self) -> int:
        """See `EvictionPolicy`."""
        while True:
            _, entry, unit = heappop(self._heap)
            if unit in self.units and self._latest[unit] == entry:
                self.forget(unit)
                return unit
