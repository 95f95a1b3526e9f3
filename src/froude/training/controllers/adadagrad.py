"""AdAdaGrad's norm test: grow the batch whenever the noise in its mean gradient outweighs the gradient.

The batch never shrinks; where the test fails it becomes just large enough to have passed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from froude.core.registry import Source
from froude.program.controller import Controller, GradientObservation, SetBatch

Positive = Annotated[int, Field(gt=0)]


@dataclass
class AdAdaGrad(Controller[GradientObservation, SetBatch]):
    """The (approximate) norm test: variance of one sample / b <= eta^2 |mean gradient|^2.

    Knobs: ``eta`` (the authors use 0.1 to 0.5, github.com/timlautk/AdAdaGrad; smaller asks for larger batches), the
    ``multiple`` of sequences that batches are rounded up to (data-parallel ranks times micro-batch), the largest batch,
    and the steps between tests.
    """

    name = "adadagrad"
    source = Source(
        "Lau et al.",
        2024,
        "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
        "arXiv:2402.11215",
        catalogue=88,
    )

    max_sequences: Positive
    eta: Annotated[float, Field(gt=0)] = 0.5
    multiple: Positive = 1
    interval_steps: Positive = 1

    def observe(self, observation: GradientObservation) -> SetBatch:
        """Test, at the steps that are its own; without a variance (a single gradient was seen) nothing changes."""
        batch, variance = observation.batch_sequences, observation.sample_variance
        untimely = observation.step % self.interval_steps != 0
        if untimely or not math.isfinite(variance) or not observation.mean_norm_sq > 0.0:
            return SetBatch(batch)
        wanted = variance / (self.eta**2 * observation.mean_norm_sq)
        if wanted <= batch:
            return SetBatch(batch)
        rounded = math.ceil(min(wanted, self.max_sequences) / self.multiple) * self.multiple
        return SetBatch(max(batch, min(rounded, self.max_sequences // self.multiple * self.multiple)))

    def next_change_step(self, step: int) -> int:
        """Every ``interval_steps``."""
        return (step // self.interval_steps + 1) * self.interval_steps
