"""Sarathi-Serve: stall-free batching. Decoding never waits: prompt chunks only fill what it leaves of a token budget.

Every iteration takes all decoding sequences first, then partial prompts, then new ones, each cut to the budget that
is left; the budget is small enough for the iteration to meet the target on time between tokens.
Source: Agrawal et al. (2024), Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve, arXiv:2403.02310
(algorithm 3; blocks for the whole prompt are taken at admission, as in the vLLM version it was built on).
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.serving.policy import FOREVER, Decision, Scheduler, Sequence, View


class SarathiServe(Scheduler):
    """Stall-free batching under a token budget (512 and 2,048 in the paper, by target latency)."""

    name = "sarathi-serve"
    source = Source(
        "Agrawal et al.",
        2024,
        "Taming Throughput-Latency Tradeoff in LLM Inference with Sarathi-Serve",
        "arXiv:2403.02310",
        catalogue=108,
    )

    def __init__(self, max_batched_tokens: int = 512, max_seqs: int = 128, watermark: float = 0.01) -> None:
        super().__init__(max_batched_tokens, max_seqs, watermark)

    def reserved_tokens(self, sequence: Sequence) -> int:
        """The prompt's blocks are taken at admission, so that a partial prompt never stalls for memory."""
        return sequence.prompt_tokens + sequence.generated_tokens

    def schedule(self, view: View) -> Decision:
        """Decoding, then partial prompts, then new prompts, within the budget."""
        free = view.free_blocks - view.decode_blocks
        if free < 0:
            return Decision()
        budget = self.max_batched_tokens - view.decoding
        prefill: list[tuple[Sequence, int]] = []
        for sequence in view.prefilling:
            tokens = min(sequence.remaining_tokens, budget)
            if tokens <= 0:
                break
            budget -= tokens
            prefill.append((sequence, tokens))
        free -= self.watermark_blocks(view.total_blocks)
        room = self.max_seqs - view.decoding - len(view.prefilling)
        waiting = view.waiting
        while budget > 0 and room > 0 and waiting:
            sequence = waiting.peek()
            tokens = min(sequence.remaining_tokens, budget)
            blocks = view.blocks_needed(sequence, tokens)
            if blocks > free:
                break
            waiting.pop()
            free -= blocks
            budget -= tokens
            room -= 1
            prefill.append((sequence, tokens))
        on_arrival = budget > 0 and room > 0 and not waiting
        return Decision(
            prefill, iterations=FOREVER, on_arrival=on_arrival, on_completion=bool(prefill) or not on_arrival
        )
