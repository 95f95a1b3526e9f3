"""Priorities: the most urgent waiting request is served next, the least urgent running one is preempted first.

Otherwise it batches as vLLM V1 does; requests of one priority are served in order of arrival, and the least urgent may
wait for ever.
Source: vLLM, ``--scheduling-policy priority`` (``vllm/v1/core/sched/request_queue.py``, 2025).
"""

from __future__ import annotations

from froude.core.registry import Source
from froude.serving.policy import Sequence, View
from froude.serving.schedulers.vllm_v1 import VllmV1


class Priority(VllmV1):
    """vLLM V1 with the waiting queue ordered by priority, smaller first."""

    name = "priority"
    source = Source("vLLM project", 2025, "vLLM V1 scheduler, priority policy", "https://github.com/vllm-project/vllm")
    first_come = False

    def key(self, sequence: Sequence) -> tuple[float, int]:
        """Priority, then arrival."""
        return (sequence.priority, sequence.arrival_ps)

    def victim(self, view: View) -> Sequence:
        """The least urgent, of those the last to arrive."""
        return max(view.running(), key=lambda s: (s.priority, s.arrival_ps, s.id))
