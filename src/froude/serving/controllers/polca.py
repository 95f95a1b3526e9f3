"""POLCA: more servers under one power budget, because inference seldom draws all it may at once.

When a row nears its budget the clocks of low-priority servers are locked lower, then those of high-priority ones; above
the budget a brake stops nearly everything. What is locked is released some way below the threshold that locked it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from froude.core.registry import Source
from froude.program.controller import Controller, PowerObservation, SetClocks

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

FREE, LOW, LOWER, ALL, BRAKE = range(5)
"""How far capping has gone: not at all; low priority; low priority further; high priority too; the brake."""


@dataclass
class Polca(Controller[PowerObservation, SetClocks]):
    """Knobs: the row's budget, which devices are of low priority, thresholds as shares of the budget, clocks, lags.

    Thresholds, clocks and lags are the paper's for A100: out-of-band clock locks take up to 40 s to act, the brake 5 s.
    The row's meter is read every ``telemetry_s``.
    """

    name = "polca"
    source = Source(
        "Patel et al.",
        2023,
        "POLCA: Power Oversubscription in LLM Cloud Providers",
        "arXiv:2308.12908",
        catalogue=3,
    )

    budget_w: Positive
    low_priority: frozenset[int] = frozenset()
    first: Positive = 0.80
    second: Positive = 0.89
    release_first: Positive = 0.75
    release_second: Positive = 0.84
    nominal_mhz: Positive = 1410.0
    low_mhz: Positive = 1275.0
    lower_mhz: Positive = 1110.0
    high_mhz: Positive = 1305.0
    brake_mhz: Positive = 288.0
    telemetry_s: Positive = 2.0
    lag_s: NotNegative = 40.0
    brake_lag_s: NotNegative = 5.0
    brakes: int = field(default=0, init=False)
    _level: int = field(default=FREE, init=False)
    _commands: list[tuple[float, int]] = field(
        default_factory=list, init=False
    )  # when it acts, what it makes the level
    _reading_s: float = field(default=0.0, init=False)

    def observe(self, observation: PowerObservation) -> SetClocks:
        """Carry out the commands that are due; read the meter when it is time, and command."""
        now, before = observation.now_s, self._level
        while self._commands and self._commands[0][0] <= now:
            self._level = self._commands.pop(0)[1]
        if self._reading_s <= now:
            while self._reading_s <= now:
                self._reading_s += self.telemetry_s
            if self._level == before:  # otherwise the meter does not show yet what changes at this moment
                self._command(now, sum(observation.power_w.values()) / self.budget_w)
        return self._clocks(observation) if self._level != before else SetClocks()

    def next_change_s(self, now_s: float) -> float:
        """The next reading, or the moment at which a command acts."""
        return max(now_s, min([self._reading_s, *(due for due, _ in self._commands[:1])]))

    def _command(self, now: float, share: float) -> None:
        aim = self._commands[-1][1] if self._commands else self._level
        wanted = self._wanted(share, aim)
        if wanted == BRAKE != aim:
            self.brakes += 1
            self._commands = [(now + self.brake_lag_s, BRAKE)]
        elif wanted != aim:
            self._commands.append((now + self.lag_s, wanted))

    def _wanted(self, share: float, aim: int) -> int:
        """The level for that share of the budget when the last command aims at ``aim``."""
        if share > 1.0:
            return BRAKE
        if share >= self.second:
            # High priority is touched only where the deeper lock of low priority has acted and was not enough.
            return max(aim, ALL if self._level >= LOWER and not self._commands else LOWER)
        if aim == BRAKE:
            return ALL if share < self.release_second else BRAKE
        if share < self.release_first:
            return FREE
        if share < self.release_second:
            aim = min(aim, LOW)
        return max(aim, LOW) if share >= self.first else aim

    def _clocks(self, observation: PowerObservation) -> SetClocks:
        low = {LOW: self.low_mhz, LOWER: self.lower_mhz, ALL: self.lower_mhz, BRAKE: self.brake_mhz}
        high = {ALL: self.high_mhz, BRAKE: self.brake_mhz}
        return SetClocks(
            {
                device: (low if device in self.low_priority else high).get(self._level, self.nominal_mhz)
                / self.nominal_mhz
                for device in observation.power_w
            }
        )
