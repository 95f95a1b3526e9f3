"""Least work by tokens: the replica with the fewest prompt tokens in progress takes the next request.

Lengths of outputs are not known to a router, so a request counts by its prompt from when it is handed over until it is
complete; long prompts then spread out where counting requests would pile them up.
Source: Sun et al. (2024), Llumnix: Dynamic Scheduling for Large Language Model Serving, arXiv:2406.03243 (load measured
in tokens rather than requests; its baseline INFaaS++ dispatches this way, without migration).
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from froude.core.registry import Source
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


class LeastTokens(Router):
    """Fewest prompt tokens in progress."""

    name = "least-tokens"
    source = Source(
        "Sun et al.", 2024, "Llumnix: Dynamic Scheduling for Large Language Model Serving", "arXiv:2406.03243"
    )

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """The least loaded, the first of equals."""
        loads = [replica.outstanding_tokens for replica in replicas]
        return loads.index(min(loads))
