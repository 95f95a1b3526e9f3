"""Peak performance of serving long contexts: four limits that all come from the size of the cache.

Long prompts take compute to read, leave room for few users, make every decoded token read more, and take longest to
move when users come by turns. No engine is simulated: peaks of the device, for what is the best possible.
"""

from __future__ import annotations

from dataclasses import dataclass

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.machines.device import Device
from froude.models.architecture import Architecture

source = Source(
    "Fu",
    2024,
    "Challenges in Deploying Long-Context Transformers: A Theoretical Peak Performance Analysis",
    "arXiv:2405.08944",
    catalogue=59,
)


@dataclass(frozen=True, slots=True)
class ContextPeaks:
    """What a device can do at best for users of one context length.

    Attributes:
        cache_bytes: one user's keys and values.
        users: whose caches fit beside the weights.
        prefill_s: to read one prompt.
        decode_s: to write one answer alone.
        switch_s: to move one user's cache out and another's in.
    """

    cache_bytes: float
    users: int
    prefill_s: float
    decode_s: float
    switch_s: float


def context_peaks(
    architecture: Architecture, device: Device, context: int, answer: int = 250, dtype_bytes: float = 2.0
) -> ContextPeaks:
    """The four limits of one device that holds the whole model.

    Raises:
        InvalidValueError: the weights alone do not fit.
    """
    weights = architecture.parameters * dtype_bytes
    if weights >= device.memory_bytes:
        raise InvalidValueError("device", device.name, f"does not hold the {weights / 1e9:.0f} GB of weights")
    cache = architecture.kv_bytes_per_token(dtype_bytes) * context
    # Each token meets the weights and, on average, half the prompt: scores and values of every layer.
    per_token = 2.0 * architecture.matmul_parameters + 2.0 * architecture.layers * architecture.query_width * context
    return ContextPeaks(
        cache_bytes=cache,
        users=int((device.memory_bytes - weights) / cache),
        prefill_s=context * per_token / device.peak_flops["bf16"],
        decode_s=answer * (weights + cache) / device.memory_bandwidth,
        switch_s=2.0 * cache / device.host_bandwidth,
    )
