"""Breadth-first pipeline: all micro-batches go through a chunk before the next chunk begins.

Stages are looped as in interleaved 1F1B, so the pipeline fills in passes of a chunk; and because passes of a chunk
follow one another, what ZeRO shards is gathered and reduced once per chunk and step. All activations are alive at once.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.training.schedule import Pass, Schedule


class BreadthFirst(Schedule):
    """Chunk by chunk forward, then chunk by chunk back.

    On one stage this is layered gradient accumulation, and with a layer per chunk the modular pipeline, both of
    Lamy-Poirier 2021 (arXiv:2106.02679, row 233 of the catalogue); with one chunk it is GPipe.
    """

    name = "breadth-first"
    source = Source("Lamy-Poirier", 2022, "Breadth-First Pipeline Parallelism", "arXiv:2211.05953", catalogue=254)
    holds_chunks = True

    def objection(self, stages: int, micro_batches: int, chunks: int) -> str | None:
        """Any counts will do; fewer micro-batches than stages leave a bubble in every loop."""
        return None

    def order(self, stages: int, micro_batches: int, chunks: int) -> list[list[Pass]]:
        """The same order on every stage."""
        forward = [Pass("forward", m, chunk) for chunk in range(chunks) for m in range(micro_batches)]
        backward = [p._replace(kind="backward") for p in reversed(forward)]
        return [forward + backward for _ in range(stages)]
