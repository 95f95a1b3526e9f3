"""Waiting queues of the jumping simulator: nothing is touched until a request gets to the head."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from froude.serving.policy import Sequence

if TYPE_CHECKING:
    from froude.serving.jumper import Jumper


class FirstComeQueue:
    """Arrivals in order behind preempted sequences: an index into the trace and a stack."""

    __slots__ = ("arrivals", "arrived", "engine", "front", "head")

    def __init__(self, arrivals: list[Sequence], engine: Jumper) -> None:
        self.arrivals, self.engine = arrivals, engine
        self.front: list[Sequence] = []
        self.head = 0
        self.arrived = 0

    def __len__(self) -> int:
        return len(self.front) + self.arrived - self.head

    def __bool__(self) -> bool:
        return self.head < self.arrived or bool(self.front)

    def peek(self) -> Sequence:
        """The next one."""
        sequence = self.front[-1] if self.front else self.arrivals[self.head]
        if self.engine.cache is not None:
            self.engine.cache.match(sequence)
        return sequence

    def pop(self) -> Sequence:
        """Take the next one out; it holds its part of the prefix cache from now on."""
        if self.front:
            sequence = self.front.pop()
        else:
            sequence = self.arrivals[self.head]
            self.head += 1
        if self.engine.cache is not None:
            self.engine.free_blocks -= self.engine.cache.acquire(sequence)
        return sequence

    def arrive(self, until: int) -> None:
        """Requests up to that index of the trace have arrived."""
        self.arrived = until

    def drain(self) -> list[Sequence]:
        """Take all out."""
        left = [*reversed(self.front), *self.arrivals[self.head : self.arrived]]
        self.front.clear()
        self.head = self.arrived
        return left

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence returns."""
        self.front.append(sequence)


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
