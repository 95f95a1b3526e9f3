"""Waiting queues of the jumping simulator: nothing is touched until a request gets to the head."""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from froude.serving.policy import Sequence
from froude.serving.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from froude.serving.jumper import Jumper


class FirstComeQueue(deque[Sequence]):
    """Arrivals in order behind preempted sequences; the head is at the right end, where a deque pops."""

    def __init__(self, arrivals: list[Sequence]) -> None:
        super().__init__()
        self.arrivals = arrivals
        self.arrived = 0

    def peek(self) -> Sequence:
        """The next one."""
        return self[-1]

    def arrive(self, until: int) -> None:
        """Requests up to that index of the trace have arrived."""
        self.extendleft(self.arrivals[self.arrived : until])
        self.arrived = until

    def drain(self) -> list[Sequence]:
        """Take all out."""
        left = [*reversed(self)]
        self.clear()
        return left

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence returns."""
        self.append(sequence)


class FirstComePrefixQueue(FirstComeQueue):
    """The same, where the head knows what the prefix cache holds of it."""

    def __init__(self, arrivals: list[Sequence], engine: Jumper, cache: PrefixCache) -> None:
        super().__init__(arrivals)
        self.engine, self.cache = engine, cache

    def peek(self) -> Sequence:
        """The next one."""
        sequence = self[-1]
        self.cache.match(sequence)
        return sequence

    def pop(self) -> Sequence:  # type: ignore[override]
        """Take the next one out; it holds its part of the prefix cache from now on."""
        sequence = super().pop()
        self.engine.free_blocks -= self.cache.acquire(sequence)
        return sequence


class KeyedQueue:
    """Sequences by the scheduler's key, then id."""

    def __init__(self, arrivals: list[Sequence], engine: Jumper) -> None:
        self.arrivals, self.engine, self.scheduler = arrivals, engine, engine.scheduler
        self.heap: list[tuple[Any, int, Sequence]] = []
        self.arrived = 0

    def __len__(self) -> int:
        return len(self.heap)

    def __bool__(self) -> bool:
        return bool(self.heap)

    def peek(self) -> Sequence:
        """The next one."""
        sequence = self.heap[0][2]
        if self.engine.cache is not None:
            self.engine.cache.match(sequence)
        return sequence

    def pop(self) -> Sequence:
        """Take the next one out; it holds its part of the prefix cache from now on."""
        sequence = heappop(self.heap)[2]
        if self.engine.cache is not None:
            self.engine.free_blocks -= self.engine.cache.acquire(sequence)
        return sequence

    def arrive(self, until: int) -> None:
        """Requests up to that index of the trace have arrived."""
        for sequence in self.arrivals[self.arrived : until]:
            self.put_back(sequence)
        self.arrived = until

    def drain(self) -> list[Sequence]:
        """Take all out."""
        left = [sequence for _, _, sequence in sorted(self.heap, key=lambda item: item[:2])]
        self.heap.clear()
        return left

    def put_back(self, sequence: Sequence) -> None:
        """A sequence joins."""
        heappush(self.heap, (self.scheduler.key(sequence), sequence.id, sequence))
