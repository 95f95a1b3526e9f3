"""Waiting queues of the jumping simulator: nothing is touched until a request gets to the head."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from froude.serving.policy import Sequence
from froude.serving.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from froude.serving.jumper import Jumper


class FirstComeQueue(deque[Sequence]):
    """Arrivals in order behind preempted sequences; the head is at the right end, where a deque pops."""

    join = deque.appendleft  # a request arrives
    put_back = deque.append  # a preempted sequence returns

    def peek(self) -> Sequence:
        """The next one."""
        return self[-1]

    def drain(self) -> list[Sequence]:
        """Take all out."""
        left = [*reversed(self)]
        self.clear()
        return left


class FirstComePrefixQueue(FirstComeQueue):
    """The same, where the head knows what the prefix cache holds of it."""

    def __init__(self, engine: Jumper, cache: PrefixCache) -> None:
        super().__init__()
        self.engine, self.cache = engine, cache

    def peek(self) -> Sequence:
        """The next one."""
        sequence = self[-1]
        self.cache.match(sequence, self.engine.now_ps)
        return sequence

    def pop(self) -> Sequence:  # type: ignore[override]
        """Take the next one out; it holds its part of the prefix cache from now on."""
        sequence = super().pop()
        self.engine.free_blocks -= self.cache.acquire(sequence, self.engine.now_ps)
        return sequence


class KeyedQueue:
    """Sequences by the scheduler's key, then id."""

    def __init__(self, engine: Jumper) -> None:
        self.engine = engine
        self.key: Callable[[Sequence], Any] = engine.scheduler.key
        self.epoch = 0
        self.heap: list[tuple[Any, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self.heap)

    def __bool__(self) -> bool:
        return bool(self.heap)

    def peek(self) -> Sequence:
        """The next one."""
        sequence = self.heap[0][2]
        if self.engine.cache is not None:
            self.engine.cache.match(sequence, self.engine.now_ps)
        return sequence

    def pop(self) -> Sequence:
        """Take the next one out; it holds its part of the prefix cache from now on."""
        sequence = heappop(self.heap)[2]
        if self.engine.cache is not None:
            self.engine.free_blocks -= self.engine.cache.acquire(sequence, self.engine.now_ps)
        return sequence

    def drain(self) -> list[Sequence]:
        """Take all out."""
        left = [sequence for _, _, sequence in sorted(self.heap, key=lambda item: item[:2])]
        self.heap.clear()
        return left

    def ranked(self, epoch: int, key: Callable[[Sequence], Any]) -> Iterator[Sequence]:
        """See `RankedWaiting`."""
        if epoch != self.epoch:
            self.key, self.epoch = key, epoch
            self.heap = [(key(sequence), sequence.id, sequence) for _, _, sequence in self.heap]
        self.heap.sort()  # which leaves it a heap, and takes little when it was sorted before
        return (sequence for _, _, sequence in self.heap)

    def join(self, sequence: Sequence) -> None:
        """A request arrives, or a preempted sequence returns."""
        heappush(self.heap, (self.key(sequence), sequence.id, sequence))

    put_back = join
