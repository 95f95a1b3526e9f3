"""KIVI: the cache in two bits, keys quantised per channel and values per token.

Every group of elements carries a 16-bit scale and zero point. The latest tokens of a sequence stay in 16 bits: always
so many of the values, and of the keys until there are so many, which are then packed together (its algorithm 1). A
sequence's cache takes less memory, so that more run at once, and less time to read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from froude.core.errors import InvalidValueError
from froude.core.registry import Source
from froude.serving.iteration import IterationTime, Prompts, ReplicaTime, WrappedTime
from froude.serving.kv_cache import Pool
from froude.serving.technique import ServingContext, ServingTechnique


@dataclass(frozen=True)
class Kivi(ServingTechnique):
    """Knobs: ``bits`` of an element, ``group`` of elements with one scale, ``residual`` latest tokens left in 16 bits.

    ``length`` is the context over which the residual is averaged. Prompts are attended to in 16 bits, as the authors
    do; unpacking is taken to be hidden behind reading.
    """

    name = "kivi"
    source = Source(
        "Liu et al.",
        2024,
        "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
        "arXiv:2402.02750",
        catalogue=102,
    )
    quality = "close to 16 bits in the paper's tasks; at 2 bits not for models with one key head (its tables 3 to 5)"

    bits: Annotated[int, Field(ge=1, le=8)] = 2
    group: Annotated[int, Field(ge=1)] = 32
    residual: Annotated[int, Field(ge=0)] = 128
    length: Annotated[int, Field(ge=1)] = 500

    @property
    def share(self) -> float:
        """Bytes of a token over those in 16 bits, on average over a context."""
        quantised = (self.bits + 32.0 / self.group) / 16.0
        # Keys in 16 bits are from none to all of the residual, half of it on average; values are all of it.
        recent = 0.75 * self.residual / self.length if self.residual < self.length else 1.0
        return recent + (1.0 - recent) * min(1.0, quantised)

    def rewrite_pool(self, pool: Pool, context: ServingContext) -> Pool:
        """The same memory holds more tokens."""
        return replace(pool, blocks=int(pool.blocks / self.share), bytes_per_token=pool.bytes_per_token * self.share)

    def rewrite_time(self, time: IterationTime, context: ServingContext) -> IterationTime:
        """Keys and values take less time to read."""
        if not isinstance(time, ReplicaTime):
            raise InvalidValueError("technique", self.name, "cannot be combined with pp, speculative or nanoflow")
        return _NarrowTime(time, self.share)


class _NarrowTime(WrappedTime):
    def __init__(self, inner: ReplicaTime, share: float) -> None:
        super().__init__(inner)
        self._saved_ps = round(inner.key_ps * (1.0 - share))

    def device(self, decoding: int, context: int, prompts: Prompts, width: int = 1) -> tuple[int, int]:
        """See `ReplicaTime`."""
        first, slope = self.inner.device(decoding, context, prompts, width)
        return first - context * self._saved_ps, slope - decoding * self._saved_ps
