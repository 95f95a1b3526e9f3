"""Prefix cache: prompts stay in the pool, are found again by the hashes of their blocks, and go when room is needed.

A *unit* is what one hash of the trace stands for, a whole number of cache blocks. Units that running sequences read are
shared and counted once; units nobody reads any more keep their content until the pool needs them, and then go as an
`EvictionPolicy` says, perhaps to a tier below (`froude.serving.kv_tiers`). Blocks without content are taken before any
unit is evicted. As in vLLM, a hit on a unit that nobody reads is charged to the request that hits
it, and at least one token of a prompt is always computed. Where the trace knows hashes beyond the prompt, they are of
what is generated, and can be found once the request is complete.
Source: automatic prefix caching of vLLM (docs.vllm.ai, design/prefix_caching); Zheng et al. (2023), SGLang,
arXiv:2312.07104.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from froude.core.errors import InvalidValueError, UnknownNameError
from froude.serving.eviction import EVICTIONS
from froude.serving.kv_tiers import LowerTiers
from froude.serving.outcome import Outcome, TierUse, Worker
from froude.serving.policy import Sequence


class PrefixCache:
    """The content of one engine's pool.

    Attributes:
        unit_tokens, unit_blocks: size of a unit.
        empty: blocks that nobody holds and that have no content.
        readers: unit -> running sequences that hold it.
        policy, idle: who says what goes next, and its units: those that nobody holds.
        lower: where evicted units go; None where they are lost.
        hit_tokens, prompt_tokens: found, of all asked for, at admission.
        merges: what two sequences compute at once is kept once.
    """

    merges: ClassVar[bool] = False

    def __init__(
        self,
        total_blocks: int,
        block_tokens: int,
        unit_tokens: int,
        eviction: str = "lru",
        lower: LowerTiers | None = None,
    ) -> None:
        if unit_tokens < 1 or unit_tokens % block_tokens:
            why = f"is not a whole number of cache blocks of {block_tokens} tokens"
            raise InvalidValueError("prefix_block_tokens", unit_tokens, why)
        self.unit_tokens = unit_tokens
        self.unit_blocks = unit_tokens // block_tokens
        self.empty = total_blocks
        self.readers: dict[int, int] = {}
        self.policy = EVICTIONS.create(eviction)
        self.idle = self.policy.units
        self.lower = lower
        self._matched: Sequence | None = None  # what `match` said of it still holds
        self._below = 0  # how many of the units found for it are in tiers below
        self.hit_tokens = self.prompt_tokens = 0

    def match(self, sequence: Sequence, now_ps: int) -> None:
        """Note on a waiting sequence what is there for it: tokens it need not compute, blocks it need not pay for."""
        readers, idle = self.readers, self.idle
        most = (sequence.prompt_tokens + sequence.generated_tokens - 1) // self.unit_tokens
        most = min(most, sequence.prompt_tokens // self.unit_tokens, len(sequence.prefix))
        found = paid = 0
        for unit in sequence.prefix[:most]:
            if unit in readers:
                paid += 1
            elif unit not in idle:
                break
            found += 1
        if self.lower is not None:
            missing = sequence.prefix[found:most]
            gap = next((n for n, unit in enumerate(missing) if unit in readers or unit in idle), len(missing))
            self._below = self.lower.find(sequence, found, missing[:gap], now_ps)
            found += self._below
        sequence.computed_tokens = found * self.unit_tokens
        sequence.blocks = paid * self.unit_blocks
        self._matched = sequence

    def acquire(self, sequence: Sequence, now_ps: int) -> int:
        """A sequence is admitted and holds what is found; returns the free blocks that this takes."""
        if sequence is not self._matched:
            self.match(sequence, now_ps)
        self._matched = None
        found = sequence.computed_tokens // self.unit_tokens
        sequence.units = list(sequence.prefix[:found])
        taken = found - sequence.blocks // self.unit_blocks
        for unit in sequence.units:
            self.readers[unit] = self.readers.get(unit, 0) + 1
        self.policy.read(sequence.units)
        sequence.blocks = found * self.unit_blocks
        self.hit_tokens += sequence.computed_tokens
        self.prompt_tokens += sequence.prompt_tokens + sequence.generated_tokens
        if self.lower is not None:
            self.lower.settle(now_ps)
            self.lower.fetch(sequence, found - self._below, now_ps)
            self.take(self._below * self.unit_blocks)
        return taken * self.unit_blocks

    def computed(self, sequence: Sequence, before: int) -> int:
        """A prompt advanced from ``before`` tokens: whole units can be found from now on. Returns blocks freed.

        A unit that another sequence computed at the same time is kept twice until this one leaves.
        """
        last = min(sequence.computed_tokens, sequence.prompt_tokens) // self.unit_tokens
        new: Iterable[int] = sequence.prefix[before // self.unit_tokens : last]
        readers, idle = self.readers, self.idle
        if not (readers.keys().isdisjoint(new) and idle.keys().isdisjoint(new)):
            new = [unit for unit in new if unit not in readers and unit not in idle]
        for unit in new:
            readers[unit] = 1
        sequence.units += new
        return 0

    def idles(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the next so many tokens of a prompt hold a unit that is in the cache already, with nobody reading."""
        start = sequence.computed_tokens
        last = min(start + tokens, sequence.prompt_tokens) // self.unit_tokens
        return not self.idle.keys().isdisjoint(sequence.prefix[start // self.unit_tokens : last])

    def take(self, blocks: int) -> None:
        """Blocks are handed out; idle units make room."""
        self._matched = None
        self.empty -= blocks
        if self.empty < 0:
            units = -(self.empty // self.unit_blocks)
            evicted = self.policy.victims(units)
            if self.lower is not None:
                self.lower.put(evicted)
            self.empty += units * self.unit_blocks

    def release(self, sequence: Sequence, complete: bool = False) -> int:
        """A sequence leaves; returns the blocks that become free.

        Units fall idle from the end. A complete one leaves what it generated as well, if the trace has hashes for that.
        """
        self._matched = None
        own = sequence.blocks - len(sequence.units) * self.unit_blocks
        readers, units = self.readers, []
        for unit in reversed(sequence.units):
            others = readers[unit] - 1
            if others:
                readers[unit] = others
            else:
                del readers[unit]
                units.append(unit)
        free = own + len(units) * self.unit_blocks
        if complete and len(sequence.prefix) * self.unit_tokens >= sequence.prompt_tokens + self.unit_tokens:
            last = (sequence.prompt_tokens + sequence.output_tokens - 1) // self.unit_tokens
            written = sequence.prefix[sequence.prompt_tokens // self.unit_tokens : last]
            new = [unit for unit in reversed(written) if unit not in readers and unit not in self.idle]
            own -= len(new) * self.unit_blocks
            units = new + units
        self.empty += own
        self.policy.rest(units)
        sequence.units = []
        return free


class RadixCache(PrefixCache):
    """A tree of prompts: leaves are evicted first, and equal prompts share what they compute.

    A sequence that has computed what another put into the tree meanwhile takes the tree's blocks and frees its own. So
    whoever holds a unit holds all before it, and a policy that is `leaf_first` never leaves a unit without its parent.
    Source: Zheng et al. (2023), SGLang, arXiv:2312.07104 (RadixAttention), with pages of a unit.
    """

    merges = True

    def computed(self, sequence: Sequence, before: int) -> int:
        """See `PrefixCache`."""
        freed = 0
        first, last = (min(n, sequence.prompt_tokens) // self.unit_tokens for n in (before, sequence.computed_tokens))
        for unit in sequence.prefix[first:last]:
            if unit in self.readers:
                self.readers[unit] += 1
                self.empty += self.unit_blocks
                freed += self.unit_blocks
            else:
                self.readers[unit] = 1
                if unit in self.idle:
                    self.policy.read((unit,))
                    self.empty += self.unit_blocks  # its own copy goes, and the tree's is held
            sequence.units.append(unit)
        return freed

    def idles(self, sequence: Sequence, tokens: int) -> bool:
        """Whether the next so many tokens of a prompt hold a unit that is in the tree already."""
        start = sequence.computed_tokens
        last = min(start + tokens, sequence.prompt_tokens) // self.unit_tokens
        units = sequence.prefix[start // self.unit_tokens : last]
        return not (self.idle.keys().isdisjoint(units) and self.readers.keys().isdisjoint(units))


PREFIX_CACHES: dict[str, type[PrefixCache]] = {"block": PrefixCache, "radix": RadixCache}


def check_prefixes(kind: str, eviction: str) -> None:
    """Whether there is such a cache.

    Raises:
        FroudeError: for an unknown kind or policy, or a policy that a tree cannot follow.
    """
    if kind not in PREFIX_CACHES:
        raise UnknownNameError("prefix_cache", kind, PREFIX_CACHES)
    policy = EVICTIONS.get(eviction)
    if PREFIX_CACHES[kind].merges and not policy.leaf_first:
        able = ", ".join(other.name for other in EVICTIONS if other.leaf_first)
        why = f"does not evict leaves first, as a {kind} cache must; {able} do, or use a block cache"
        raise InvalidValueError("eviction", eviction, why)


def make_caches(workers: list[Worker], unit_tokens: int | None) -> list[PrefixCache | None]:
    """One cache per worker; None where prefixes are not kept."""
    if unit_tokens is None:
        return [None] * len(workers)
    if any(w.swap for w in workers):
        raise InvalidValueError("preemption", "swap", "cannot be combined with a prefix cache; recompute can")
    made: list[PrefixCache | None] = []
    for w in workers:
        if w.role == "decode":
            made.append(None)
            continue
        lower = None
        if w.tiers is not None:
            lower = LowerTiers(w.tiers, unit_tokens, w.eviction, w.time, w.scheduler.max_batched_tokens)
        check_prefixes(w.prefixes, w.eviction)
        made.append(PREFIX_CACHES[w.prefixes](w.total_blocks, w.block_tokens, unit_tokens, w.eviction, lower))
    return made


def count_hits(outcome: Outcome, caches: list[PrefixCache | None]) -> None:
    """Add up what was found in all replicas."""
    found: dict[str, TierUse] = {}
    for cache in caches:
        if cache is None:
            continue
        outcome.hit_tokens += cache.hit_tokens
        outcome.asked_tokens += cache.prompt_tokens
        if cache.lower is not None:
            outcome.loading_ps += cache.lower.loading_ps
            outcome.passed_tokens += cache.lower.passed_tokens
            for use in cache.lower.use():
                found[use.name] = found[use.name] + use if use.name in found else use
    outcome.tiers = list(found.values())
