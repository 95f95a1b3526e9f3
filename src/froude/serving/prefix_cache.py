"""Prefix cache: prompts stay in the pool, are found again by the hashes of their blocks, evicted least recent first.

A *unit* is what one hash of the trace stands for, a whole number of cache blocks. Units that running sequences read are
shared and counted once; units nobody reads any more keep their content until the pool needs them. Blocks without
content are taken before any unit is evicted. As in vLLM, a hit on a unit that nobody reads is charged to the request
that hits it, and at least one token of a prompt is always computed.
Source: automatic prefix caching of vLLM (docs.vllm.ai, design/prefix_caching); Zheng et al. (2023), SGLang,
arXiv:2312.07104.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from typing import ClassVar

from froude.core.errors import InvalidValueError
from froude.serving.outcome import Outcome, Worker
from froude.serving.policy import Sequence


class PrefixCache:
    """The content of one engine's pool.

    Attributes:
        unit_tokens, unit_blocks: size of a unit.
        empty: blocks that nobody holds and that have no content.
        readers: unit -> running sequences that hold it.
        idle: units nobody holds, least recently used first.
        hit_tokens, prompt_tokens: found, of all asked for, at admission.
        merges: what two sequences compute at once is kept once.
    """

    merges: ClassVar[bool] = False

    def __init__(self, total_blocks: int, block_tokens: int, unit_tokens: int) -> None:
        if unit_tokens < 1 or unit_tokens % block_tokens:
            why = f"is not a whole number of cache blocks of {block_tokens} tokens"
            raise InvalidValueError("prefix_block_tokens", unit_tokens, why)
        self.unit_tokens = unit_tokens
        self.unit_blocks = unit_tokens // block_tokens
        self.empty = total_blocks
        self.readers: dict[int, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()
        self._matched: Sequence | None = None  # what `match` said of it still holds
        self.hit_tokens = self.prompt_tokens = 0

    def match(self, sequence: Sequence) -> None:
        """Note on a waiting sequence what is there for it: tokens it need not compute, blocks it need not pay for."""
        readers, idle = self.readers, self.idle
        most = (sequence.prompt_tokens + sequence.generated_tokens - 1) // self.unit_tokens
        found = paid = 0
        for unit in sequence.prefix[: min(most, sequence.prompt_tokens // self.unit_tokens)]:
            if unit in readers:
                paid += 1
            elif unit not in idle:
                break
            found += 1
        sequence.computed_tokens = found * self.unit_tokens
        sequence.blocks = paid * self.unit_blocks
        self._matched = sequence

    def acquire(self, sequence: Sequence) -> int:
        """A sequence is admitted and holds what is found; returns the free blocks that this takes."""
        if sequence is not self._matched:
            self.match(sequence)
        self._matched = None
        found = sequence.computed_tokens // self.unit_tokens
        sequence.units = list(sequence.prefix[:found])
        taken = found - sequence.blocks // self.unit_blocks
        for unit in sequence.units:
            self.readers[unit] = self.readers.get(unit, 0) + 1
            self.idle.pop(unit, None)
        sequence.blocks = found * self.unit_blocks
        self.hit_tokens += sequence.computed_tokens
        self.prompt_tokens += sequence.prompt_tokens + sequence.generated_tokens
        return taken * self.unit_blocks

    def computed(self, sequence: Sequence, before: int) -> int:
        """A prompt advanced from ``before`` tokens: whole units can be found from now on. Returns blocks freed.

        A unit that another sequence computed at the same time is kept twice until this one leaves.
        """
        last = min(sequence.computed_tokens, sequence.prompt_tokens) // self.unit_tokens
        readers, idle, held = self.readers, self.idle, sequence.units
        for unit in sequence.prefix[before // self.unit_tokens : last]:
            if unit not in readers and unit not in idle:
                readers[unit] = 1
                held.append(unit)
        return 0

    def idles(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the next so many tokens of a prompt hold a unit that is in the cache already, with nobody reading."""
        start = sequence.computed_tokens
        last = min(start + tokens, sequence.prompt_tokens) // self.unit_tokens
        return not self.idle.keys().isdisjoint(sequence.prefix[start // self.unit_tokens : last])

    def take(self, blocks: int) -> None:
        """Blocks are handed out; the least recently used units make room."""
        self._matched = None
        self.empty -= blocks
        if self.empty < 0:
            units = -(self.empty // self.unit_blocks)
            self._evict(units)
            self.empty += units * self.unit_blocks

    def _evict(self, units: int) -> None:
        evict = self.idle.popitem
        for _ in range(units):
            evict(False)

    def release(self, sequence: Sequence) -> int:
        """A sequence leaves; returns the blocks that become free. The end of its prompt is evicted first."""
        self._matched = None
        own = sequence.blocks - len(sequence.units) * self.unit_blocks
        self.empty += own
        readers, idle, left_idle = self.readers, self.idle, 0
        for unit in reversed(sequence.units):
            left = readers.pop(unit) - 1
            if left:
                readers[unit] = left
            else:
                idle[unit] = None
                left_idle += 1
        sequence.units = []
        return own + left_idle * self.unit_blocks


class RadixCache(PrefixCache):
    """A tree of prompts: leaves are evicted, least recently used first, and equal prompts share what they compute.

    A sequence that has computed what another put into the tree meanwhile takes the tree's blocks and frees its own.
    Source: Zheng et al. (2023), SGLang, arXiv:2312.07104 (RadixAttention), with pages of a unit.
    """

    merges = True

    def __init__(self, total_blocks: int, block_tokens: int, unit_tokens: int) -> None:
        super().__init__(total_blocks, block_tokens, unit_tokens)
        self._parent: dict[int, int | None] = {}  # unit -> the one before it
        self._children: dict[int, int] = {}  # unit -> how many follow it
        self._used: dict[int, int] = {}  # unit -> when, counted in uses of the tree
        self._leaves: list[tuple[int, int]] = []  # heap of (when, unit); an entry that no longer holds is skipped
        self._uses = 0

    def acquire(self, sequence: Sequence) -> int:
        """See `PrefixCache`."""
        taken = super().acquire(sequence)
        self._use(sequence)
        return taken

    def computed(self, sequence: Sequence, before: int) -> int:
        """See `PrefixCache`."""
        freed = 0
        first, last = (min(n, sequence.prompt_tokens) // self.unit_tokens for n in (before, sequence.computed_tokens))
        for place, unit in enumerate(sequence.prefix[first:last], start=first):
            if unit in self.readers:
                self.readers[unit] += 1
                self.empty += self.unit_blocks
                freed += self.unit_blocks
            elif unit in self.idle:
                del self.idle[unit]
                self.readers[unit] = 1
                self.empty += self.unit_blocks  # its own copy goes, and the tree's is held
            else:
                self.readers[unit] = 1
                self._parent[unit] = parent = sequence.prefix[place - 1] if place else None
                self._children[unit] = 0
                if parent is not None:
                    self._children[parent] += 1
            sequence.units.append(unit)
        self._use(sequence)
        return freed

    def idles(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the next so many tokens of a prompt hold a unit that is in the tree already."""
        start = sequence.computed_tokens
        last = min(start + tokens, sequence.prompt_tokens) // self.unit_tokens
        units = sequence.prefix[start // self.unit_tokens : last]
        return not (self.idle.keys().isdisjoint(units) and self.readers.keys().isdisjoint(units))

    def release(self, sequence: Sequence) -> int:
        """See `PrefixCache`."""
        self._use(sequence)
        held = list(sequence.units)
        freed = super().release(sequence)
        for unit in held:
            self._offer(unit)
        return freed

    def _use(self, sequence: Sequence) -> None:
        self._uses += 1
        for unit in sequence.units:
            self._used[unit] = self._uses

    def _offer(self, unit: int | None) -> None:
        if unit is not None and unit in self.idle and not self._children[unit]:
            heappush(self._leaves, (self._used[unit], unit))

    def _evict(self, units: int) -> None:
        while units:
            used, unit = heappop(self._leaves)
            if unit not in self.idle or self._children[unit] or self._used[unit] != used:
                continue
            units -= 1
            del self.idle[unit], self._children[unit], self._used[unit]
            parent = self._parent.pop(unit)
            if parent is not None:
                self._children[parent] -= 1
                self._offer(parent)


PREFIX_CACHES: dict[str, type[PrefixCache]] = {"block": PrefixCache, "radix": RadixCache}


def make_caches(workers: list[Worker], unit_tokens: int | None) -> list[PrefixCache | None]:
    """One cache per worker; None where prefixes are not kept."""
    if unit_tokens is None:
        return [None] * len(workers)
    if any(w.swap for w in workers):
        raise InvalidValueError("preemption", "swap", "cannot be combined with a prefix cache; recompute can")
    return [
        None if w.role == "decode" else PREFIX_CACHES[w.prefixes](w.total_blocks, w.block_tokens, unit_tokens)
        for w in workers
    ]


def count_hits(outcome: Outcome, caches: list[PrefixCache | None]) -> None:
    """Add up what was found in all replicas."""
    for cache in caches:
        if cache is not None:
            outcome.hit_tokens += cache.hit_tokens
            outcome.asked_tokens += cache.prompt_tokens
