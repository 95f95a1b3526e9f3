"""A predicted value with its interval and where it came from."""

from __future__ import annotations

from dataclasses import dataclass

NORMAL_80 = 1.2816
"""Standard deviations either side of the mean that hold 80% of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted value in SI units.

    ``low`` and ``high`` bound an 80% interval. ``provenance`` names the constants, measurements and fidelity behind it.
    """

    value: float
    low: float
    high: float
    provenance: tuple[str, ...] = ()

    @classmethod
    def relative(cls, value: float, spread: float, *provenance: str) -> Estimate:
        """An interval of a factor ``1 + spread`` either side."""
        return cls(value, value / (1.0 + spread), value * (1.0 + spread), provenance)

    def json(self) -> dict[str, float]:
        """The form every command prints: value, low, high."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in other units, or a quantity proportional to it (``factor`` > 0)."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.provenance)
