"""Learned order: the waiting request that a small model believes shortest is served next.

Only the order of lengths matters, so the predictor is trained to rank. Here it sees the logarithm of the true length
with a normal error of ``noise`` (0 is the oracle, large values a random order); the error belongs to the request and
does not change when it is asked again. Otherwise it batches as vLLM V1 does.
Source: Fu et al. (2024), Efficient LLM Scheduling by Learning to Rank, arXiv:2408.15792.
"""

from __future__ import annotations

import math

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.serving.draws import normal
from froude.serving.policy import Sequence
from froude.serving.schedulers.vllm_v1 import VllmV1


class LearnedOrder(VllmV1):
    """vLLM V1 with the waiting queue ordered by predicted output, with the error of a predictor."""

    name = "learned-order"
    source = Source(
        "Fu et al.", 2024, "Efficient LLM Scheduling by Learning to Rank", "arXiv:2408.15792", catalogue=318
    )
    clairvoyant = True
    first_come = False

    def __init__(
        self,
        max_batched_tokens: int = 2048,
        max_seqs: int = 256,
        watermark: float = 0.0,
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(max_batched_tokens, max_seqs, watermark)
        if not noise >= 0:
            raise InvalidValueError("noise", noise, "is not a spread; the least is 0")
        self.noise, self.seed = noise, seed

    def key(self, sequence: Sequence) -> float:
        """Predicted logarithm of the output's length."""
        return math.log(sequence.output_tokens) + self.noise * normal(self.seed, sequence.id, "length")
