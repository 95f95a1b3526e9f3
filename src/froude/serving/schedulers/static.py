"""Static batching: a batch is served until its last request is done, and only then the next one is formed.

Who finishes early leaves a place empty, and who arrives late waits for all: what servers did before iteration-level
scheduling, as FasterTransformer behind Triton. Cache is set aside for the longest output. Tokens are counted as
seen when they are generated; a sequence that is done costs nothing more, as if kernels skipped its padding.
Source: the baseline of Yu et al. (2022), Orca: A Distributed Serving System for Transformer-Based Generative Models,
OSDI 2022, section 3 (request-level scheduling).
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.serving.policy import FOREVER, Decision, Scheduler, Sequence, View


class Static(Scheduler):
    """Request-level: whole prompts in one iteration, then decoding until nobody is left."""

    name = "static"
    source = Source(
        "Yu et al.",
        2022,
        "Orca: A Distributed Serving System for Transformer-Based Generative Models (its baseline)",
        "OSDI 2022",
    )

    def __init__(self, max_batched_tokens: int = 8192, max_seqs: int = 256, watermark: float = 0.0) -> None:
        super().__init__(max_batched_tokens, max_seqs, watermark)

    def reserved_tokens(self, sequence: Sequence) -> int:
        """Prompt and longest output."""
        return sequence.prompt_tokens + sequence.limit_tokens

    def schedule(self, view: View) -> Decision:
        """A new batch where there is none."""
        if not view.decoding:
            free = view.free_blocks - self.watermark_blocks(view.total_blocks)
            prefill = self.admit_whole(view, free, self.max_batched_tokens)
            if prefill:
                return Decision(prefill)
        return Decision(iterations=FOREVER, on_arrival=not view.decoding)
