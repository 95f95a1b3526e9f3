"""Quantities that claims compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Metric(Generic[T]):
    """A quantity of one arm, in SI units, and which way is better."""

    better: Literal["lower", "higher"]
    of: Callable[[T], float]

    def gain(self, baseline: float, technique: float) -> float:
        """How many times better the technique is."""
        return baseline / technique if self.better == "lower" else technique / baseline
