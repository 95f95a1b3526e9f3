"""Join the shortest queue: the replica with the fewest requests that are not complete takes the next one.

Ties go to the first replica. It evens out counts, not tokens.
Source: Winston (1977), Optimality of the shortest line discipline, Journal of Applied Probability 14(1).
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from froude.core.registry import Source
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


class LeastOutstanding(Router):
    """Fewest requests in progress."""

    name = "least-outstanding"
    source = Source("Winston", 1977, "Optimality of the shortest line discipline", "doi:10.2307/3213271")

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """The least loaded, the first of equals."""
        loads = [replica.outstanding for replica in replicas]
        return loads.index(min(loads))
