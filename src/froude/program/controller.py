"""The `Controller` contract: observation -> action, and when time must stop for it next.

A controller looks at a run, simulated or real, and changes something about it: clocks, replicas, the batch size,
whether to checkpoint now. The same object drives both. It never sees more than its observation, and it publishes the
next moment at which it will act, so that a simulator can jump straight to it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from froude.core.registry import Source

Observation = TypeVar("Observation")
Act = TypeVar("Act")


class Controller(ABC, Generic[Observation, Act]):
    """Base of all controllers. Subclasses name themselves and their source."""

    name: ClassVar[str]
    source: ClassVar[Source]

    @abstractmethod
    def observe(self, observation: Observation) -> Act:
        """Look, and say what to change."""

    def next_change_s(self, now_s: float) -> float:
        """The next time at which it wants to observe; infinity when it is asked at the run's own milestones only."""
        return math.inf

    def next_change_step(self, step: int) -> int:
        """The next count of optimizer steps at which it wants to observe, for controllers of training."""
        return step + 1


@dataclass(frozen=True, slots=True)
class PowerObservation:
    """What a row of machines draws.

    Attributes:
        now_s: time.
        power_w: device -> draw at this moment.
    """

    now_s: float
    power_w: dict[int, float]


@dataclass(frozen=True, slots=True)
class SetClocks:
    """Relative clock (1 = nominal) per device from this moment on; devices left out keep theirs."""

    fraction: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GradientObservation:
    """Gradient statistics of one optimizer step.

    Attributes:
        step: optimizer steps done so far.
        batch_sequences: sequences in this step's global batch.
        mean_norm_sq: squared norm of the gradient averaged over the batch.
        sample_variance: trace of the covariance of one sequence's gradient (the sum over coordinates), estimated from
            the micro-batch or worker gradients.
    """

    step: int
    batch_sequences: int
    mean_norm_sq: float
    sample_variance: float


@dataclass(frozen=True, slots=True)
class SetBatch:
    """Sequences of the next step's global batch."""

    sequences: int
