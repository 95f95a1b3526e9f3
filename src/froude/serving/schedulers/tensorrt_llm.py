"""TensorRT-LLM's in-flight batching: as vLLM's budget of tokens, but a request is admitted for all it may ever hold.

Its capacity scheduler guarantees that nothing is evicted: a request starts only when the cache has blocks for its
prompt and its longest output, so decoding never runs out of them. Prompts are not cut unless chunking is switched on
(`enable_chunked_prefill`): one that does not fit beside others goes into the next iteration.
Source: NVIDIA, TensorRT-LLM documentation, "GUARANTEED_NO_EVICT" capacity scheduler policy (the default).
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.serving.policy import Sequence
from froude.serving.schedulers.vllm_v1 import VllmV1


class TensorRtLlm(VllmV1):
    """In-flight batching without eviction."""

    name = "tensorrt-llm"
    source = Source(
        "NVIDIA",
        2025,
        "TensorRT-LLM, batch manager",
        "https://nvidia.github.io/TensorRT-LLM/legacy/advanced/gpt-attention.html",
    )

    whole_prompts = True

    def reserved_tokens(self, sequence: Sequence) -> int:
        """Everything it will ever hold."""
        return sequence.prompt_tokens + sequence.limit_tokens
