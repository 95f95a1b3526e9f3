"""Host memory to which preempted sequences leave their cache: who has how much there, and what copying takes."""

from __future__ import annotations

from froude.serving.outcome import Swap
from froude.serving.policy import Sequence


class HostMemory:
    """The room of one replica.

    With `Swap.reuse` the copy of a sequence that runs again stays until its room is needed, the oldest going first;
    swapped out again, only blocks that are new or were not full are copied.
    """

    def __init__(self, swap: Swap | None) -> None:
        self.swap = swap
        self.free_blocks = swap.host_blocks if swap else 0
        self.kept: dict[int, int] = {}  # by id: full blocks of running sequences

    def leave(self, sequence: Sequence, blocks: int) -> int | None:
        """A preempted sequence leaves so many blocks; the time its copy takes, or None where there is no room."""
        if self.swap is None or not blocks:
            return None
        kept = self.kept.pop(sequence.id, 0)
        self.free_blocks += kept
        while self.free_blocks < blocks and self.kept:
            self.free_blocks += self.kept.pop(next(iter(self.kept)))
        if self.free_blocks < blocks:
            return None
        self.free_blocks -= blocks
        sequence.host_blocks = blocks
        return self.swap.copy_ps(max(0, blocks - kept))

    def fetch(self, sequence: Sequence, block_tokens: int) -> int:
        """A sequence that runs again fetches what it left; the time its copy takes."""
        assert self.swap is not None
        blocks = sequence.host_blocks
        self.drop(sequence)
        if self.swap.reuse:
            self.kept[sequence.id] = full = sequence.computed_tokens // block_tokens
            self.free_blocks -= full
        return self.swap.copy_ps(blocks)

    def drop(self, sequence: Sequence) -> None:
        """What it left is not needed any more."""
        self.free_blocks += sequence.host_blocks
        sequence.host_blocks = 0
