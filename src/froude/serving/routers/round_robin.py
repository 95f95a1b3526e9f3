"""Round robin: replicas in turn, whatever they are doing.

Every replica gets every n-th request, so a run of long requests can overload one while others idle.
Source: the textbook rule; the default of nginx and of most load balancers.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from froude.core.registry import Source
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


class RoundRobin(Router):
    """In turn, by the request's number."""

    name = "round-robin"
    source = Source("Nagle", 1985, "On Packet Switches with Infinite Storage", "RFC 970")

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """The request's number modulo the replicas."""
        return sequence.id % len(replicas)
