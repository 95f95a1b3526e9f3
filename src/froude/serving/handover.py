"""What an engine holds for requests that do not run in it: prompts that are done, and requests on their way to it.

Where prompts and generation have workers of their own, a prefill worker keeps the cache of a prompt that is done until
it has been fetched, and a decode worker sets blocks and a place aside before anything is sent.
"""

from __future__ import annotations

from copy import copy

from froude.serving.outcome import Worker
from froude.serving.policy import Scheduler, Sequence, View
from froude.serving.prefix_cache import PrefixCache


class Holding(View):
    """The part of an engine's state that both simulators share.

    Attributes:
        parks: sequences that are done keep their blocks until `let_go`.
        parked: those that do, by id, as they were when they were done.
        expected: sequences that blocks and a place are set aside for.
    """

    scheduler: Scheduler
    cache: PrefixCache | None

    def __init__(self, parks: bool) -> None:
        self.parks = parks
        self.parked: dict[int, Sequence] = {}
        self.expected = 0

    def park(self, sequence: Sequence) -> None:
        """A sequence is done here; its blocks stay."""
        self.parked[sequence.id] = copy(sequence)
        sequence.blocks, sequence.units = 0, []

    def let_go(self, sequence: Sequence) -> None:
        """The blocks of a parked sequence become free."""
        held = self.parked.pop(sequence.id)
        self.free_blocks += held.blocks if self.cache is None else self.cache.release(held)

    def set_aside(self, sequence: Sequence) -> bool:
        """Hold blocks and a place for a sequence that comes with its cache; False where there is no room.

        Sequences that wait here were preempted, and come first.
        """
        scheduler = self.scheduler
        running = self.decoding + len(self.prefilling) + self.expected
        if self.waiting or running >= scheduler.max_seqs:
            return False
        tokens, reserved = sequence.computed_tokens, scheduler.reserved_tokens(sequence)
        if reserved > sequence.prompt_tokens + sequence.generated_tokens:  # all that it will ever hold
            tokens = reserved
        blocks = -(-tokens // self.block_tokens)
        if blocks > self.free_blocks - scheduler.watermark_blocks(self.total_blocks):
            return False
        self.free_blocks -= blocks
        sequence.blocks = blocks
        self.expected += 1
        return True


def parks(worker: Worker) -> bool:
    """Whether a worker keeps what is done for another to fetch."""
    return worker.role == "prefill"
