"""The memory ledger: what is allocated on one device of each stage, by state and over time, and whether it fits."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np

from froude.core.arrays import Array, Floats


@dataclass(frozen=True)
class MemoryConstants:
    """What a process takes beside its tensors (see memory.toml)."""

    runtime_bytes: float
    allocator_overhead: float
    spread: float


@lru_cache(maxsize=1)
def memory_constants() -> MemoryConstants:
    """The constants that ship."""
    raw = tomllib.loads(resources.files(__package__).joinpath("memory.toml").read_text("utf-8"))
    return MemoryConstants(**{name: float(row["value"]) for name, row in raw.items()})


@dataclass(frozen=True)
class Ledger:
    """Peak memory of one candidate.

    Attributes:
        stages: stage -> part ("weights", "gradients", "optimizer", "activations", "runtime") -> bytes at the peak.
    """

    stages: Mapping[int, Mapping[str, float]]

    @property
    def peak_stage(self) -> int:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: sum(self.stages[stage].values()))

    @property
    def peak_bytes(self) -> float:
        """What that stage needs."""
        return sum(self.stages[self.peak_stage].values())


def reserved_bytes(tensor_bytes: Array, *, own_machine: bool) -> Array:
    """Device memory that ``tensor_bytes`` of live tensors take: allocator overhead and the runtime's own on top.

    On a computer measured as a profile tensors are counted as they are: there is no device runtime beside them.
    """
    if own_machine:
        return tensor_bytes
    constants = memory_constants()
    return tensor_bytes * (1.0 + constants.allocator_overhead) + constants.runtime_bytes


def probability_of_fit(peak_bytes: Array, capacity_bytes: float) -> Floats:
    """Probability that a plan fits: the prediction's error is log-normal."""
    margin = np.log(capacity_bytes) - np.log(np.maximum(np.asarray(peak_bytes, dtype=float), 1.0))
    scaled = margin / memory_constants().spread / math.sqrt(2.0)
    fits: Floats = np.vectorize(lambda z: 0.5 * (1.0 + math.erf(z)), otypes=[float])(scaled)
    return fits
