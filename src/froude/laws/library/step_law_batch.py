"""Step Law's batch: the best batch is a power law in tokens alone.

It is the batch of lowest loss at fixed data; a larger one may still be faster (`critical-batch`).
"""

from __future__ import annotations

from froude.laws.library.critical_batch import CriticalBatch
from froude.laws.library.step_law import StepLaw


class StepLawBatch(CriticalBatch):
    """B = k D^a, in tokens."""

    name = "step-law-batch"
    source = StepLaw.source
    form = "B = k D^a"
