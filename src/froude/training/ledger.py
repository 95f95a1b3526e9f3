"""The memory ledger: what is allocated on one device of each stage, by state and over time, and whether it fits."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Literal

import numpy as np

from froude.core.arrays import Array, Floats
from froude.timing.stack import Stack
from froude.training.placement import Placement


@dataclass(frozen=True)
class MemoryConstants:
    """What a process takes beside its tensors (see memory.toml)."""

    runtime_bytes: float
    communicator_bytes: float
    workspace_bytes: float
    bucket_bytes: float
    allocator_overhead: float
    spread: float
    interval: float
    interval_experts: float


@lru_cache(maxsize=1)
def memory_constants() -> MemoryConstants:
    """The constants that ship."""
    raw = tomllib.loads(resources.files(__package__).joinpath("memory.toml").read_text("utf-8"))
    return MemoryConstants(**{name: float(row["value"]) for name, row in raw.items()})


@dataclass(frozen=True)
class Ledger:
    """Peak memory of one candidate.

    Attributes:
        stages: stage -> part ("weights", "gradients", "optimizer", "activations", and what is beside the tensors:
            "workspaces", "allocator", "runtime") -> bytes at the peak.
    """

    stages: Mapping[int, Mapping[str, float]]

    def bytes_of(self, kind: Literal["allocated", "reserved", "device"], stage: int | None = None) -> float:
        """What a kind of measurement sees, of one stage or of the neediest: tensors and workspaces; those and the
        caching allocator's gaps; all that the device reports in use.
        """
        unseen = {"allocated": ("allocator", "runtime"), "reserved": ("runtime",), "device": ()}[kind]
        seen = {
            number: sum(size for part, size in parts.items() if part not in unseen)
            for number, parts in self.stages.items()
        }
        return max(seen.values()) if stage is None else seen[stage]

    @property
    def peak_stage(self) -> int:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: sum(self.stages[stage].values()))

    @property
    def peak_bytes(self) -> float:
        """What that stage needs."""
        return sum(self.stages[self.peak_stage].values())


def beside_tensors(
    resident_bytes: Array, peak_bytes: Array, placement: Placement, stack: Stack, *, own_machine: bool
) -> dict[str, Array]:
    """Bytes beside a stage's tensors at their peak, by part.

    What stays allocated throughout is allocated once. What comes and goes leaves gaps, in blocks that the caching
    allocator keeps: a fraction of it. Segments that grow leave none.

    On a computer measured as a profile tensors are counted as they are: there is no device runtime beside them. A
    compiler that plans all buffers beforehand (XLA) leaves no gaps, and plans those of collectives too.
    """
    if own_machine:
        return {}
    constants = memory_constants()
    if stack.host == "compiled":
        return {"runtime": constants.runtime_bytes}
    gaps = constants.allocator_overhead if stack.allocator == "blocks" else 0.0
    buckets = constants.bucket_bytes if stack.gradients_held == "deepspeed" else 0.0
    return {
        "workspaces": constants.workspace_bytes + buckets,
        "allocator": (peak_bytes - resident_bytes) * gaps,
        "runtime": constants.runtime_bytes + placement.communicators * constants.communicator_bytes,
    }


def device_bytes(
    resident_bytes: Array, peak_bytes: Array, placement: Placement, stack: Stack, *, own_machine: bool
) -> Array:
    """Device memory that a stage takes whose tensors peak at ``peak_bytes``."""
    beside = beside_tensors(resident_bytes, peak_bytes, placement, stack, own_machine=own_machine)
    return sum(beside.values(), start=peak_bytes)


def probability_of_fit(peak_bytes: Array, capacity_bytes: float) -> Floats:
    """Probability that a plan fits: the prediction's error is log-normal."""
    margin = np.log(capacity_bytes) - np.log(np.maximum(np.asarray(peak_bytes, dtype=float), 1.0))
    scaled = margin / memory_constants().spread / math.sqrt(2.0)
    fits: Floats = np.vectorize(lambda z: 0.5 * (1.0 + math.erf(z)), otypes=[float])(scaled)
    return fits
