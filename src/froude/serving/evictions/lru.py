"""Least recently used: what fell idle first goes first.

The end of a prompt falls idle before its beginning, so that a prompt is evicted from its end.
Source: vLLM and SGLang evict so by default; Mattson et al. (1970), Evaluation Techniques for Storage Hierarchies.
"""

from __future__ import annotations

from itertools import islice

from froude.core.registry import Source
from froude.serving.eviction import EvictionPolicy


class Lru(EvictionPolicy):
    """By the time of the last reader."""

    name = "lru"
    source = Source("Mattson et al.", 1970, "Evaluation Techniques for Storage Hierarchies", "doi:10.1147/sj.92.0078")
    leaf_first = True

    def evict(self) -> int:
        """See `EvictionPolicy`."""
        return self.units.popitem(last=False)[0]

    def victims(self, count: int) -> list[int]:
        """See `EvictionPolicy`."""
        idle = self.units
        evicted = list(islice(idle, count))
        for unit in evicted:
            del idle[unit]
        return evicted
