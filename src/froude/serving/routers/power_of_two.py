"""Power of two choices: two replicas are drawn, and the one with fewer requests in progress takes the next one.

Nearly as even as asking all replicas, at the price of asking two. The draw depends on the request's number alone.
Source: Mitzenmacher (2001), The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10),
doi:10.1109/71.963420.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from froude.core.registry import Source
from froude.serving.draws import uniform
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


class PowerOfTwo(Router):
    """The less loaded of two drawn at random, the first drawn of equals."""

    name = "power-of-two"
    source = Source(
        "Mitzenmacher", 2001, "The Power of Two Choices in Randomized Load Balancing", "doi:10.1109/71.963420"
    )

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """Drawn by a hash of the seed and the request's number, so that any order of calls draws the same."""
        count = len(replicas)
        if count == 1:
            return 0
        one = int(count * uniform(self.seed, sequence.id, "one"))
        other = int((count - 1) * uniform(self.seed, sequence.id, "other"))
        other += other >= one  # two different ones
        return one if replicas[one].outstanding <= replicas[other].outstanding else other
