"""Iterations under a power cap: each runs at the highest clock at which its products draw no more.

A device's own controller lowers the clock of the cores until the draw is below the cap. Long prompts keep the cores
busy and draw the most, so they slow down first; decoding waits for memory, whose clock is its own, and draws less.
Source: Patel et al. (2024), Characterizing Power Management Opportunities for LLMs in the Cloud, ASPLOS 2024,
doi:10.1145/3620666.3651329 (prompt and token phases under power and frequency caps).
"""

from __future__ import annotations

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import InvalidValueError
from froude.machines.power import PowerModel
from froude.serving.iteration import Prompts, WrappedTime
from froude.serving.model_time import ModelIterationTime

STEP = 0.05  # between the clocks that are priced
_PAGE = 1024  # token counts whose clocks are found at a time


class CappedTime(WrappedTime):
    """Another, on devices that may draw ``cap_w`` each.

    The clock follows from the number of tokens in an iteration alone. Keys that decoding reads come at the speed of
    memory, whatever the clock.
    """

    def __init__(self, inner: ModelIterationTime, cap_w: float) -> None:
        super().__init__(inner)
        self.model, self.cap_w = inner, cap_w
        self.power = PowerModel.of(inner.cluster.device)
        self._timed: dict[float, ModelIterationTime] = {1.0: inner}
        self._clocks: dict[int, float] = {}

    def device(self, decoding: int, context: int, prompts: Prompts, width: int = 1) -> tuple[int, int]:
        """See `ReplicaTime`."""
        tokens = decoding * width + sum(count for count, _ in prompts)
        time = self._at(self.clock(tokens))
        first, slope = time.device(decoding, 0, prompts, width)
        return first + context * self.inner.key_ps, slope + decoding * (self.inner.key_ps - time.key_ps)

    def clock(self, tokens: int) -> float:
        """The highest relative clock at which an iteration of so many tokens draws no more than the cap."""
        if tokens not in self._clocks:
            start = (tokens - 1) // _PAGE * _PAGE + 1
            counts = np.arange(start, start + _PAGE)
            found, step = np.full(len(counts), np.nan), 0
            while np.isnan(found).any():
                clock = max(self.power.min_clock, round(1.0 - STEP * step, 2))
                allowed = self.watts(counts.astype(float), clock) <= self.cap_w
                found[np.isnan(found) & (allowed | (clock == self.power.min_clock))] = clock
                step += 1
            self._clocks.update(zip(counts.tolist(), found.tolist(), strict=True))
        return self._clocks[tokens]

    def watts(self, tokens: Floats, clock: float) -> Floats:
        """Draw of one device while it computes the products of iterations of so many tokens."""
        demands = self._at(clock).products(tokens).demands
        watts = self.power.watts(demands.get("compute", 0.0), demands.get("memory", 0.0), clock)
        return np.broadcast_to(np.asarray(watts, dtype=float), tokens.shape)

    def joules(self, busy_s: float, idle_s: float) -> float:
        """A busy device draws the cap, an idle one its idle power."""
        return self.model.devices * (min(self.cap_w, self.power.tdp_w) * busy_s + self.power.idle_w * idle_s)

    def _at(self, clock: float) -> ModelIterationTime:
        if clock not in self._timed:
            self._timed[clock] = self.model.at_clock(clock)
        return self._timed[clock]


def capped(time: ModelIterationTime, cap_w: float) -> CappedTime:
    """The time under a cap.

    Raises:
        InvalidValueError: for a cap that no clock keeps to, and for devices whose power or clock is not known.
    """
    device, power = time.cluster.device, PowerModel.of(time.cluster.device)
    if not power.tdp_w > power.idle_w > 0:
        raise InvalidValueError("power_cap", cap_w, f"needs idle and full power of {device.name}; none is known")
    if device.measured:
        raise InvalidValueError("power_cap", cap_w, f"cannot be applied to {device.name}, measured at its own clock")
    least = float(power.watts(1.0, 1.0, power.min_clock))
    if not cap_w >= least:
        raise InvalidValueError(
            "power_cap", cap_w, f"is too low for {device.name}: its lowest clock draws {least:.0f} W"
        )
    return CappedTime(time, cap_w)
