"""What a device draws, and how fast it computes, under a lowered clock.

Dynamic power of CMOS logic is ``C f V^2`` (Chandrakasan, Sheng, Brodersen, 1992, "Low-power CMOS digital design", IEEE
JSSC 27(4)); the voltage a clock needs is taken as affine in it. Compute speed follows the clock;
device memory has a clock of its own, so memory-bound work is unaffected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Array
from froude.machines.costs import read_table
from froude.machines.device import Device


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Power of one device from its utilisation and relative clock.

    Attributes:
        idle_w: with nothing to do.
        tdp_w: with everything busy at full clock.
        memory_share: share of the dynamic power that device memory draws; it does not follow the clock.
        voltage_intercept: voltage at a clock of zero over that at full clock, on the straight line between.
        min_clock: lowest relative clock.
    """

    idle_w: float
    tdp_w: float
    memory_share: float
    voltage_intercept: float
    min_clock: float

    @classmethod
    def of(cls, device: Device) -> PowerModel:
        """The model of a device, with the shares of ``defaults.toml``."""
        shares = read_table("defaults.toml")["clock"]
        return cls(
            device.idle_w, device.tdp_w, shares["memory_share"], shares["voltage_intercept"], shares["min_clock"]
        )

    def dynamic_scale(self, clock: Array) -> Array:
        """Dynamic power of the cores at relative ``clock`` over that at full clock: ``f V(f)^2``."""
        clock = np.clip(clock, self.min_clock, 1.0)
        voltage = self.voltage_intercept + (1.0 - self.voltage_intercept) * clock
        scale: Array = clock * voltage**2
        return scale

    def clock_at(self, scale: float) -> float:
        """The relative clock, 1 at most, at which the cores draw ``scale`` times the dynamic power of full clock."""
        low, high = self.min_clock, 1.0
        for _ in range(50):  # bisection: power rises with the clock
            middle = (low + high) / 2
            low, high = (middle, high) if float(self.dynamic_scale(middle)) <= scale else (low, middle)
        return low

    def watts(self, compute: Array, memory: Array = 0.0, clock: Array = 1.0) -> Array:
        """Draw when cores are busy a fraction ``compute`` of the time and memory a fraction ``memory``.

        Both fractions are of the time at the given clock; the cores idle at full memory utilisation draw only the
        memory's share.
        """
        dynamic = self.tdp_w - self.idle_w
        cores = (1.0 - self.memory_share) * np.clip(compute, 0.0, 1.0) * self.dynamic_scale(clock)
        watts: Array = self.idle_w + dynamic * (cores + self.memory_share * np.clip(memory, 0.0, 1.0))
        return watts

    def slowdown(self, compute_s: Array, memory_s: Array, clock: Array) -> Array:
        """Time of work at relative ``clock`` over its time at full clock.

        The work needs ``compute_s`` of the cores and ``memory_s`` of the memory at full clock, overlapped.
        """
        clock = np.clip(clock, self.min_clock, 1.0)
        ratio: Array = np.maximum(compute_s / clock, memory_s) / np.maximum(compute_s, memory_s)
        return ratio

    def clock_for(self, budget_w: float, compute: float, memory: float = 0.0) -> float:
        """The highest relative clock at which that utilisation draws at most ``budget_w``; the lowest, if none does."""
        low, high = self.min_clock, 1.0
        if float(self.watts(compute, memory, high)) <= budget_w:
            return high
        for _ in range(50):  # bisection: watts rise with the clock
            middle = (low + high) / 2
            low, high = (middle, high) if float(self.watts(compute, memory, middle)) <= budget_w else (low, middle)
        return low
