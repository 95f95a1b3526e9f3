"""The `Schedule` contract: an order of work, and nothing else. Bubbles are a result, never a formula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from froude.core.registry import Registry, Source


class Pass(NamedTuple):
    """One micro-batch through one chunk of a stage's layers, one way."""

    kind: Literal["forward", "backward"]
    micro_batch: int
    chunk: int = 0


class Schedule(ABC):
    """In what order each pipeline stage does its passes.

    A stage holds ``chunks`` pieces of the model (virtual stages): piece ``c`` of stage ``s`` is number
    ``c * stages + s`` of all. Which pass waits for which other is the same for all schedules; it is no business of
    theirs.

    A schedule that ``holds_chunks`` goes on with a chunk for several passes, and what ZeRO shards of it stays whole
    meanwhile: gathered once before them, reduced once after them. With the others every pass gathers and reduces.
    """

    name: ClassVar[str]
    source: ClassVar[Source]
    holds_chunks: ClassVar[bool] = False

    def objection(self, stages: int, micro_batches: int, chunks: int) -> str | None:
        """Why this schedule cannot be used with these counts, or None."""
        return None if chunks == 1 else f"{self.name} has one chunk per stage, not {chunks}"

    @abstractmethod
    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """The passes of each stage, in order: every micro-batch once forward and once backward through every chunk."""


schedules: Registry[Schedule] = Registry(
    "schedule",
    "froude.training.schedules",
    Schedule,
    aliases={"1f1b": "one-forward-one-backward", "interleaved": "interleaved-1f1b"},
)
