"""Scatter/gather hand-over between pipeline stages (PTD-P): ranks of a tensor-parallel group, which all hold the same
activation, each send a share of it, and the receivers gather the whole over the fast links of their node.

A hand-over then crosses the slow links once instead of once per tensor-parallel rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from froude.core.registry import Source
from froude.machines.cluster import Cluster, Group
from froude.models.architecture import Architecture
from froude.timing.cost import Collective
from froude.training.plan import Job, Layout
from froude.training.technique import StepContext, TrainingTechnique
from froude.training.work import StepWork, stream_bytes


@dataclass(frozen=True)
class ScatterGather(TrainingTechnique):
    """Send a share, gather the whole."""

    name = "scatter-gather"
    quality = "exact: the same values arrive"
    source = Source(
        "Narayanan et al.",
        2021,
        "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
        "arXiv:2104.04473",
        catalogue=337,
    )

    def objection(self, architecture: Architecture, cluster: Cluster, job: Job, layout: Layout) -> str | None:
        """With sequence parallelism every rank already sends only its own piece."""
        if layout.sequence_parallel and layout.tensor_parallel > 1:
            return "sequence_parallel already divides what stages hand over"
        return None

    def rewrite_work(self, work: StepWork, context: StepContext) -> StepWork:
        """Each rank sends its share; a hand-over ends when the shares are gathered."""
        ways = context.batch.tensor_parallel
        whole = stream_bytes(context.architecture, context.job, context.batch)
        gather = Collective(kind="all-gather", bytes=whole, group=Group(ways), name="pipeline-gather")
        return replace(work, send=(*(replace(part, bytes=part.bytes / ways) for part in work.send), gather))
