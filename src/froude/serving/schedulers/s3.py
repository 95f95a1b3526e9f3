"""S3: cache is reserved for the predicted output rather than the longest, so that more sequences run at once.

A classifier names one of ``buckets`` equal intervals up to the request's ``max_tokens``; the prompt and the interval's
upper end are reserved. Who turns out longer takes blocks as it goes, and is preempted and recomputed when none is left
(the paper moves it out and doubles its reservation). The classifier is right with probability ``accuracy``, else off
by one interval.
Source: Jin et al. (2023), S3: Increasing GPU Utilization during Generative Inference for Higher Throughput,
arXiv:2306.06000 (ten buckets; 98.61% right on Alpaca).
"""

from __future__ import annotations

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.serving.draws import uniform
from froude.serving.policy import FOREVER, Decision, Scheduler, Sequence, View


class S3(Scheduler):
    """Iteration-level, whole prompts, reservation by predicted length."""

    name = "s3"
    source = Source(
        "Jin et al.",
        2023,
        "S3: Increasing GPU Utilization during Generative Inference for Higher Throughput",
        "arXiv:2306.06000",
    )
    clairvoyant = True

    def __init__(
        self,
        max_batched_tokens: int = 8192,
        max_seqs: int = 256,
        watermark: float = 0.0,
        buckets: int = 10,
        accuracy: float = 0.9861,
        seed: int = 0,
    ) -> None:
        super().__init__(max_batched_tokens, max_seqs, watermark)
        if buckets < 1:
            raise InvalidValueError("buckets", buckets, "is not a number of intervals; the least is 1")
        if not 0 <= accuracy <= 1:
            raise InvalidValueError("accuracy", accuracy, "must lie between 0 and 1")
        self.buckets, self.accuracy, self.seed = buckets, accuracy, seed

    def predicted_tokens(self, sequence: Sequence) -> int:
        """Upper end of the interval that the classifier names."""
        limit = max(sequence.limit_tokens, sequence.output_tokens)
        bucket = -(-sequence.output_tokens * self.buckets // limit)  # from 1
        wrong = uniform(self.seed, sequence.id, "bucket") - self.accuracy
        if wrong > 0:
            bucket += 1 if wrong > (1.0 - self.accuracy) / 2.0 else -1
        return -(-limit * min(max(bucket, 1), self.buckets) // self.buckets)

    def reserved_tokens(self, sequence: Sequence) -> int:
        """Prompt and predicted output; for one predicted too short no more than it has."""
        predicted = self.predicted_tokens(sequence)
        return sequence.prompt_tokens + (
            predicted if predicted >= sequence.output_tokens else sequence.generated_tokens
        )

    def schedule(self, view: View) -> Decision:
        """Whole prompts while slots, budget and memory last; a prompt longer than the budget comes alone."""
        free = view.free_blocks - view.decode_blocks
        if free < 0:
            return Decision()
        free -= self.watermark_blocks(view.total_blocks)
        prefill = self.admit_whole(view, free, self.max_batched_tokens - view.decoding)
        if prefill:
            return Decision(prefill)
        return Decision(iterations=FOREVER, on_arrival=not view.waiting, on_completion=bool(view.waiting))
