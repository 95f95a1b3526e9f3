"""Shortest job first: the waiting prompt with the least work to come is served next, its output length known.

An oracle that bounds what learned predictors of output length can gain; otherwise it batches as vLLM V1 does, and a
blocked head may be overtaken by a shorter arrival.
Source: the oracle baseline of Fu et al. (2024), Efficient LLM Scheduling by Learning to Rank, arXiv:2408.15792.
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.serving.policy import Sequence
from froude.serving.schedulers.vllm_v1 import VllmV1


class ShortestJob(VllmV1):
    """vLLM V1 with the waiting queue ordered by remaining output."""

    name = "shortest-job"
    source = Source(
        "Fu et al.", 2024, "Efficient LLM Scheduling by Learning to Rank", "arXiv:2408.15792", catalogue=318
    )
    clairvoyant = True
    first_come = False

    def key(self, sequence: Sequence) -> int:
        """Tokens still to be generated."""
        return sequence.output_tokens - sequence.generated_tokens
