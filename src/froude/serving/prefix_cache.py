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
    """

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

    def computed(self, sequence: Sequence, before: int) -> None:
        """A prompt advanced from ``before`` tokens: whole units can be found from now on.

        A unit that another sequence computed at the same time is kept twice until this one leaves.
        """
        last = min(sequence.computed_tokens, sequence.prompt_tokens) // self.unit_tokens
        for unit in sequence.prefix[before // self.unit_tokens : last]:
            if unit not in self.readers and unit not in self.idle:
                self.readers[unit] = 1
                sequence.units.append(unit)

    def idles(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the next so many tokens of a prompt hold a unit that is in the cache already, with nobody reading."""
        start = sequence.computed_tokens
        last = min(start + tokens, sequence.prompt_tokens) // self.unit_tokens
        return any(unit in self.idle for unit in sequence.prefix[start // self.unit_tokens : last])

    def take(self, blocks: int) -> None:
        """Blocks are handed out; the least recently used units make room."""
        self._matched = None
        self.empty -= blocks
        while self.empty < 0:
            self.idle.popitem(last=False)
            self.empty += self.unit_blocks

    def release(self, sequence: Sequence) -> int:
        """A sequence leaves; returns the blocks that become free. The end of its prompt is evicted first."""
        self._matched = None
        own = sequence.blocks - len(sequence.units) * self.unit_blocks
        self.empty += own
        freed = own
        for unit in reversed(sequence.units):
            left = self.readers[unit] - 1
            if left:
                self.readers[unit] = left
            else:
                del self.readers[unit]
                self.idle[unit] = None
                freed += self.unit_blocks
        sequence.units = []
        return freed


def make_caches(workers: list[Worker], unit_tokens: int | None) -> list[PrefixCache] | list[None]:
    """One cache per worker; None for each where prefixes are not kept."""
    if unit_tokens is None:
        return [None] * len(workers)
    if any(w.swap for w in workers):
        raise InvalidValueError("preemption", "swap", "cannot be combined with a prefix cache; recompute can")
    return [PrefixCache(w.total_blocks, w.block_tokens, unit_tokens) for w in workers]


def count_hits(outcome: Outcome, caches: list[PrefixCache] | list[None]) -> None:
    """Add up what was found in all replicas."""
    for cache in caches:
        if cache is not None:
            outcome.hit_tokens += cache.hit_tokens
            outcome.asked_tokens += cache.prompt_tokens
