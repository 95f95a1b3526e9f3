"""The contract of a scaling law: a form with named symbols that predicts, can be fitted and allocates a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.core.registry import Registry, Source

Values = Mapping[str, Any]
"""Name to number or array."""

COMPLEX_STEP = 1e-30
LEAST_SQUARES = float("inf")
"""A Huber threshold that is never reached."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A coefficient of a law.

    Attributes:
        name: as the paper writes it.
        unit: SI or the field's own ("nats", "tokens"); "1" for a pure number.
        low: start points are drawn from ``low`` to ``high``; only ``bounded`` symbols must stay there.
        scale: "log" symbols are positive and searched by their logarithm; "bounded" ones are positive and stay between
            low and high.
        meaning: a few words.
    """

    name: str
    unit: str
    low: float
    high: float
    scale: Literal["linear", "log", "bounded"] = "linear"
    meaning: str = ""

    def inside(self, value: Any) -> Any:
        """From the coefficient to the unconstrained number that the optimiser moves."""
        if self.scale == "log":
            return np.log(value)
        if self.scale == "bounded":
            share = np.log(value / self.low) / np.log(self.high / self.low)
            share = np.clip(share, 1e-9, 1.0 - 1e-9)
            return np.log(share / (1.0 - share))
        return value

    def outside(self, theta: Any) -> Any:
        """From the optimiser's number to the coefficient."""
        if self.scale == "log":
            return np.exp(np.clip(theta, -690.0, 690.0))
        if self.scale == "bounded":
            share = 1.0 / (1.0 + np.exp(-np.clip(theta, -690.0, 690.0)))
            return self.low * (self.high / self.low) ** share
        return theta

    def slope(self, value: Any) -> Any:
        """Derivative of the coefficient by the optimiser's number, at coefficient ``value``."""
        if self.scale == "log":
            return value
        if self.scale == "bounded":
            width = np.log(self.high / self.low)
            share = np.log(value / self.low) / width
            return value * width * share * (1.0 - share)
        return np.ones_like(value)


class Law(ABC):
    """A published scaling law.

    A law is its form: `predict` maps input columns and coefficients to the target column, broadcasting (inputs vary
    along the last axis). Everything else (fit, intervals, allocation) follows from it; a law overrides what its paper
    does differently.
    """

    name: ClassVar[str]
    source: ClassVar[Source]
    form: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("params", "tokens")
    target: ClassVar[str] = "loss"
    residual: ClassVar[Literal["log", "linear"]] = "log"
    """Residuals are ratios ("log") or differences ("linear"); losses that may be negative need differences."""
    delta: ClassVar[float] = 1e-3
    """Where the Huber loss turns from square to absolute."""

    @property
    @abstractmethod
    def symbols(self) -> tuple[Symbol, ...]:
        """The coefficients, in order."""

    @abstractmethod
    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """The target at ``inputs``. Must work on complex coefficients too: derivatives come from a complex step."""

    @classmethod
    def for_table(cls, table: Mapping[str, Any]) -> Law:
        """The law sized for a table; laws with one coefficient per domain look at its columns."""
        return cls()

    @classmethod
    def prepare(cls, table: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """The table the law is fitted to, where that is not the table of runs, and a sentence saying what was done."""
        return table, ""

    def columns(self) -> tuple[str, ...]:
        """Input columns of this instance."""
        return self.inputs

    def positive(self) -> tuple[str, ...]:
        """Inputs that must be above zero; all, unless a law can take zeros (shares of a mixture, zero steps)."""
        return self.columns()

    def select(self, table: Mapping[str, Floats]) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], str]:
        """Rows the law is meant for, and a sentence saying what was left out (empty when nothing was)."""
        return np.ones(len(table[self.target]), dtype=bool), ""

    def gradient(self, inputs: Values, coefficients: Values) -> tuple[Floats, list[Floats]]:
        """The prediction and its derivative by each coefficient (exact: complex step)."""
        value = np.asarray(self.predict(inputs, coefficients))
        partials = []
        for symbol in self.symbols:
            stepped = dict(coefficients)
            stepped[symbol.name] = np.asarray(coefficients[symbol.name]) + 1j * COMPLEX_STEP
            partials.append(np.asarray(np.imag(self.predict(inputs, stepped))) / COMPLEX_STEP)
        return value, partials

    def starts(self, count: int, rng: np.random.Generator, table: Mapping[str, Floats]) -> Floats:
        """``count`` start points in the optimiser's coordinates, drawn from each symbol's range."""
        shares = rng.random((count, len(self.symbols)))
        columns = []
        for symbol, share in zip(self.symbols, shares.T, strict=True):
            if symbol.scale == "linear":
                columns.append(symbol.low + (symbol.high - symbol.low) * share)
            else:
                columns.append(symbol.inside(symbol.low * (symbol.high / symbol.low) ** share))
        return np.stack(columns, axis=-1)

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """Compute-optimal ``params`` and ``tokens`` for a training budget, where the law's form gives them directly.

        Laws of loss in params and tokens need not: `froude.laws.allocation` minimises them.
        """
        raise FroudeError(f"law: {self.name!r} says nothing about how to divide a budget; {allocators_hint()}")


def allocators_hint() -> str:
    """The clause that names laws with an allocation."""
    return f"laws that do: {', '.join(law.name for law in LAWS if law.allocate is not Law.allocate)}"


def pack(symbols: Sequence[Symbol], values: Values) -> Floats:
    """Coefficients to the optimiser's coordinates, last axis over symbols."""
    return np.stack([np.asarray(s.inside(np.asarray(values[s.name], dtype=float))) for s in symbols], axis=-1)


def unpack(symbols: Sequence[Symbol], theta: Floats) -> dict[str, Floats]:
    """The optimiser's coordinates to coefficients, each with a trailing axis to broadcast over rows."""
    return {s.name: np.asarray(s.outside(theta[..., i : i + 1])) for i, s in enumerate(symbols)}


LAWS: Registry[Law] = Registry("law", "froude.laws.library", Law)
