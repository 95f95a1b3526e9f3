"""The paged KV cache: a pool of blocks, and attention over a ragged batch of sequences that live in it.

Kwon et al. (2023), Efficient Memory Management for Large Language Model Serving with PagedAttention, arXiv:2309.06180.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from froude.core.errors import FroudeError
from froude.core.registry import Source
from froude.models.architecture import Architecture
from froude.serving.policy import Sequence
from froude.serving.prefix_cache import PrefixCache

source = Source(
    "Kwon et al.",
    2023,
    "Efficient Memory Management for Large Language Model Serving with PagedAttention",
    "arXiv:2309.06180",
    catalogue=86,
)

_FEWEST_ROWS = 4  # matrix products of two or three rows take longer than of four (MKL, one thread): pad to that
# Decoding sequences are padded together while the padding costs less than the calls of another group would (one thread:
# some 60 us of calls, 0.15 us for each key), and while what is gathered stays near the processor's caches.
_PADDING_KEYS = 400
_GROUP_KEYS = 2048


class BlockPool:
    """Keys and values of all layers in fixed-size blocks, and the list of free ones; one block more takes padding."""

    def __init__(self, architecture: Architecture, blocks: int, block_tokens: int) -> None:
        shape = (architecture.layers, blocks + 1, block_tokens, architecture.kv_heads, architecture.head_dim)
        self.keys, self.values = torch.empty(shape).zero_(), torch.empty(shape).zero_()  # every page is touched now
        self.blocks, self.block_tokens = blocks, block_tokens
        self.scrap_slot = blocks * block_tokens
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Ids of ``count`` blocks that now belong to the caller.

        Raises:
            FroudeError: when there are not that many; schedulers preempt before it comes to that.
        """
        if count > len(self._free):
            raise FroudeError(f"kv_blocks: {self.blocks} are too few, {count} more were wanted, {len(self._free)} free")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, ids: Items[int]) -> None:
        """Return blocks."""
        self._free.extend(reversed(ids))

    def give_back_all(self) -> None:
        """Nobody holds anything, whatever was taken."""
        self._free = list(range(self.blocks - 1, -1, -1))

    def copy(self, ids: list[int], other: BlockPool, theirs: list[int]) -> None:
        """Copy blocks into those of another pool."""
        here, there = torch.tensor(ids), torch.tensor(theirs)
        other.keys.index_copy_(1, there, self.keys.index_select(1, here))
        other.values.index_copy_(1, there, self.values.index_select(1, here))


class KeptUnits:
    """Where the units of a prefix cache lie in the pool.

    The cache itself, the simulator's, only counts. Units that it has evicted are given back when blocks run short.
    """

    def __init__(self, prefixes: PrefixCache, pool: BlockPool) -> None:
        self._prefixes, self._pool = prefixes, pool
        self._blocks: dict[int, list[int]] = {}
        self._held: set[int] = set()  # blocks of all of them

    def keep(self, prompts: Iterable[tuple[Sequence, int, int]], tables: Mapping[int, list[int]]) -> None:
        """Prompts, as an iteration has them, were computed: units that are not there yet are kept where they lie."""
        unit_tokens, unit_blocks = self._prefixes.unit_tokens, self._prefixes.unit_blocks
        coming: set[int] = set()
        for sequence, tokens, past in prompts:
            last = min(past + tokens, sequence.prompt_tokens) // unit_tokens
            for place, unit in list(enumerate(sequence.prefix))[past // unit_tokens : last]:
                if unit in self._blocks:
                    if unit in coming or self._alive(unit):  # another sequence computed it
                        if self._prefixes.merges:
                            at = slice(place * unit_blocks, (place + 1) * unit_blocks)
                            self._pool.give_back(tables[sequence.id][at])
                            tables[sequence.id][at] = self._blocks[unit]
                        continue
                    self._forget(unit)
                coming.add(unit)
                self._blocks[unit] = tables[sequence.id][place * unit_blocks : (place + 1) * unit_blocks]
                self._held.update(self._blocks[unit])

    def blocks_of(self, sequence: Sequence) -> list[int]:
        """Blocks of the units that a sequence found at its admission."""
        return [block for unit in sequence.units for block in self._blocks[unit]]

    def own(self, table: list[int]) -> list[int]:
        """Blocks of a table that are not kept."""
        return [block for block in table if block not in self._held]

    def forget_evicted(self) -> None:
        """Give back what the cache no longer has."""
        for unit in [unit for unit in self._blocks if not self._alive(unit)]:
            self._forget(unit)

    def _alive(self, unit: int) -> bool:
        return unit in self._prefixes.readers or unit in self._prefixes.idle

    def _forget(self, unit: int) -> None:
        blocks = self._blocks.pop(unit)
        self._held.difference_update(blocks)
        self._pool.give_back(blocks)


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens that one sequence computes in one iteration.

    Attributes:
        tokens: their ids.
        past: tokens of the sequence that are in the cache already.
        table: its blocks, room for the new tokens included.
    """

    tokens: list[int]
    past: int
    table: list[int]


class RaggedBatch:
    """An `Attend` for one iteration: segments end to end in one row of tokens.

    Prompt chunks attend one by one; sequences with a single token are gathered into a few padded groups of like
    length. What one sequence attends to never depends on what else is in the batch.
    """

    def __init__(self, pool: BlockPool, segments: Items[Segment]) -> None:
        self._pool = pool
        block = pool.block_tokens
        lengths = [len(segment.tokens) for segment in segments]
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        tokens = [token for segment in segments for token in segment.tokens]
        positions = [segment.past + i for segment in segments for i in range(len(segment.tokens))]
        slots = [
            s.table[p // block] * block + p % block for s in segments for p in range(s.past, s.past + len(s.tokens))
        ]
        padding = _padding(len(tokens))
        self.tokens = torch.tensor(tokens + [0] * padding)
        self.positions = torch.tensor(positions + [0] * padding)
        self._slots = torch.tensor(slots + [pool.scrap_slot] * padding)
        self.last = torch.tensor([start - 1 for start in starts[1:]] + [0] * _padding(len(segments)))
        """Where each segment's last token is: its logits give the next one. Padded as well."""
        self._chunks = [
            _Chunk(slice(start, start + len(s.tokens)), len(s.tokens), s.past, torch.tensor(_held(s, block)))
            for s, start in zip(segments, starts, strict=False)
            if len(s.tokens) > 1
        ]
        singles = [(start, s) for s, start in zip(segments, starts, strict=False) if len(s.tokens) == 1]
        self._groups = [_Group(group, block) for group in _by_length(singles)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the new keys and values, then attend over everything each sequence has stored."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        keys.flatten(0, 1).index_copy_(0, self._slots, k)
        values.flatten(0, 1).index_copy_(0, self._slots, v)
        out = torch.zeros_like(q)
        for chunk in self._chunks:
            past_k, past_v = (_gather(x, chunk.table, 1)[:, :, : chunk.past + chunk.tokens] for x in (keys, values))
            rows = q[chunk.rows].transpose(0, 1).unsqueeze(0)
            seen = F.scaled_dot_product_attention(
                rows, past_k, past_v, attn_mask=chunk.mask, is_causal=chunk.mask is None, enable_gqa=True
            )
            out[chunk.rows] = seen.squeeze(0).transpose(0, 1)
        for group in self._groups:
            grouped = q[group.rows].unflatten(1, (k.shape[1], -1))  # query heads that share a KV head attend together
            past_k, past_v = (_gather(x, group.tables, len(group.rows)) for x in (keys, values))
            out[group.rows] = F.scaled_dot_product_attention(grouped, past_k, past_v, attn_mask=group.mask).flatten(
                1, 2
            )
        return out


class _Chunk:
    """A prompt chunk: where its tokens are, and a causal mask when some of the prompt came before."""

    def __init__(self, rows: slice, tokens: int, past: int, table: Tensor) -> None:
        self.rows, self.tokens, self.past, self.table = rows, tokens, past, table
        self.mask: Tensor | None = None
        if past:
            self.mask = torch.full((tokens, past + tokens), -torch.inf).triu_(past + 1)


class _Group:
    """Sequences with one new token each and contexts of like length, padded to the longest."""

    def __init__(self, members: Items[tuple[int, Segment]], block_tokens: int) -> None:
        tables = [_held(segment, block_tokens) for _, segment in members]
        width = max(len(table) for table in tables)
        self.rows = torch.tensor([row for row, _ in members])
        self.tables = torch.tensor([table + [0] * (width - len(table)) for table in tables]).flatten()
        context = torch.tensor([segment.past + 1 for _, segment in members])
        padding = torch.arange(width * block_tokens) >= context.unsqueeze(1)
        self.mask = torch.zeros(padding.shape).masked_fill_(padding, -torch.inf)[:, None, None, :]


def _padding(rows: int) -> int:
    return _FEWEST_ROWS - rows if 1 < rows < _FEWEST_ROWS else 0


def _held(segment: Segment, block_tokens: int) -> list[int]:
    """The blocks that hold the segment's sequence up to its last new token."""
    return segment.table[: -(-(segment.past + len(segment.tokens)) // block_tokens)]


def _by_length(members: list[tuple[int, Segment]]) -> list[list[tuple[int, Segment]]]:
    """Groups of members whose contexts differ little, so that padding wastes little."""
    groups: list[list[tuple[int, Segment]]] = []
    longest = padding = 0
    for member in sorted(members, key=lambda m: -m[1].past):
        keys = member[1].past + 1
        padding += longest - keys
        if not groups or padding > _PADDING_KEYS or longest * (len(groups[-1]) + 1) > _GROUP_KEYS:
            groups.append([])
            longest, padding = keys, 0
        groups[-1].append(member)
    return groups


def _gather(blocks: Tensor, table: Tensor, sequences: int) -> Tensor:
    """Blocks of several sequences as (sequences, kv heads, tokens, head_dim)."""
    return blocks.index_select(0, table).unflatten(0, (sequences, -1)).flatten(1, 2).transpose(1, 2)
