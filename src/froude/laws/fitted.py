"""A law with coefficients and their uncertainty: what a fit returns, a file holds and a prediction needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError, UnknownNameError
from froude.core.estimate import Estimate
from froude.core.spec import Spec
from froude.laws.law import LAWS, Law, pack, unpack
from froude.laws.outlook import Outlook, OutlookFile

LOW, HIGH = 0.1, 0.9  # intervals are 80%
KEPT_DRAWS = 400  # of the coefficients, in a file
RUN_NOISE = 0.01  # half-width of the log-noise of a run where the data cannot tell: seeds and orders of small runs
BEYOND = 1.5  # a factor past the data before a prediction is called an extrapolation


class LawFile(Spec):
    """A fitted law on disk (``froude fit --out fit.yaml``)."""

    law: str
    columns: list[str]
    coefficients: dict[str, float]
    draws: dict[str, list[float]]
    residuals: list[float]
    ranges: dict[str, tuple[float, float]]
    n: int
    provenance: str = ""
    outlook: OutlookFile | None = None


@dataclass(frozen=True)
class FittedLaw:
    """A law, its coefficients, draws from their distribution, and the range of the data behind them.

    Attributes:
        theta: coefficients in the optimiser's coordinates (p,).
        samples: bootstrap draws (B, p); one row when there is no uncertainty to speak of.
        residuals: quantiles of observed against predicted (log ratio or difference), inflated for the coefficients
            spent; what a new run adds to the uncertainty of the curve.
        ranges: smallest and largest value of each input in the data.
        outlook: how new runs are predicted, where there were runs enough to judge by; else the coefficients do it.
    """

    law: Law
    theta: Floats
    samples: Floats
    residuals: Floats
    ranges: Mapping[str, tuple[float, float]]
    n: int
    provenance: str = ""
    notes: tuple[str, ...] = field(default=())
    outlook: Outlook | None = field(default=None, repr=False)

    @classmethod
    def from_samples(
        cls, law: Law, data: Mapping[str, Floats], theta: Floats, samples: Floats, residuals: Floats
    ) -> FittedLaw:
        """From a fit to ``data``."""
        rows, width = len(residuals), len(theta)
        quantiles = np.quantile(residuals, np.linspace(0, 1, 101))
        if rows > width + 1:
            quantiles *= np.sqrt(rows / (rows - width))
        elif law.residual == "log":
            # The curve goes through the points, whose residuals say nothing of the noise.
            quantiles = RUN_NOISE * np.linspace(-2.0, 2.0, 101)
        ranges = {name: (float(data[name].min()), float(data[name].max())) for name in law.columns()}
        return cls(law, theta, samples, quantiles, ranges, rows)

    def values(self) -> dict[str, float]:
        """Coefficients."""
        return {name: float(value[..., 0]) for name, value in unpack(self.law.symbols, self.theta).items()}

    def draws(self) -> dict[str, Floats]:
        """Draws of each coefficient."""
        return {name: value[..., 0] for name, value in unpack(self.law.symbols, self.samples).items()}

    def estimates(self) -> dict[str, Estimate]:
        """Coefficients with 80% intervals."""
        values, draws = self.values(), self.draws()
        return {name: Estimate(value, *interval(draws[name], value)) for name, value in values.items()}

    def predict_arrays(self, inputs: Mapping[str, Any]) -> tuple[Floats, Floats, Floats]:
        """Prediction and 80% interval for a new run at each of the inputs."""
        at = {name: np.atleast_1d(np.asarray(inputs[name], dtype=float)) for name in self.law.columns()}
        if self.outlook is not None:
            return self.outlook.predict(at)
        with np.errstate(all="ignore"):
            centre = np.asarray(self.law.predict(at, unpack(self.law.symbols, self.theta)), dtype=float)
            many = np.asarray(self.law.predict(at, unpack(self.law.symbols, self.samples)), dtype=float)
        size = max((len(column) for column in at.values()), default=1)
        centre, many = np.broadcast_to(centre, (size,)), np.broadcast_to(many, (len(self.samples), size))
        # Every draw of the curve meets every quantile of the residuals: curve and noise are independent.
        noise = self.residuals[:, None, None]
        spread = many[None] * np.exp(noise) if self.law.residual == "log" else many[None] + noise
        flat = spread.reshape(-1, size)
        flat = np.where(np.isfinite(flat), flat, centre)
        low, high = np.quantile(flat, LOW, axis=0), np.quantile(flat, HIGH, axis=0)
        return centre.copy(), np.minimum(low, centre), np.maximum(high, centre)

    def predict(self, **inputs: float) -> tuple[Estimate, list[str]]:
        """The target for one run, and warnings where it leaves the data.

        Raises:
            FroudeError: an input is missing, unknown or not positive.
        """
        given = self._inputs(inputs)
        centre, low, high = self.predict_arrays(given)
        if not np.isfinite(centre[0]):
            raise FroudeError(f"law: {self.law.name!r} has no finite value at these inputs")
        origin = self.provenance or f"{self.law.name} fitted to {self.n} rows"
        return Estimate(float(centre[0]), float(low[0]), float(high[0]), (origin,)), self.extrapolations(given)

    def extrapolations(self, inputs: Mapping[str, float]) -> list[str]:
        """One sentence for each input beyond the data."""
        said = []
        for name, (low, high) in self.ranges.items():
            value = float(inputs[name])
            if value > high * BEYOND and high > 0:
                said.append(f"extrapolation: {name} = {value:.3g} is {value / high:.3g} times the data's largest")
            elif 0 < value < low / BEYOND:
                said.append(f"extrapolation: {name} = {value:.3g} is {low / value:.3g} times below the data's smallest")
        return said

    def _inputs(self, given: Mapping[str, float]) -> dict[str, float]:
        wanted = self.law.columns()
        for name in given:
            if name not in wanted:
                raise UnknownNameError(f"input of {self.law.name}", name, wanted)
        for name in wanted:
            if name not in given:
                raise FroudeError(f"{name}: missing; law {self.law.name!r} needs {', '.join(wanted)}")
            if not np.isfinite(given[name]) or (name in self.law.positive() and given[name] <= 0):
                raise InvalidValueError(name, given[name], "must be a positive number")
        return {name: float(given[name]) for name in wanted}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write YAML; `read_law` reads it back."""
        kept = self.samples[:: max(1, len(self.samples) // KEPT_DRAWS)]
        draws = {name: value[..., 0] for name, value in unpack(self.law.symbols, kept).items()}
        LawFile(
            law=self.law.name,
            columns=[*self.law.columns(), self.law.target],
            coefficients=self.values(),
            draws={name: [float(v) for v in column] for name, column in draws.items()},
            residuals=[float(v) for v in self.residuals],
            ranges={name: (float(a), float(b)) for name, (a, b) in self.ranges.items()},
            n=self.n,
            provenance=self.provenance,
            outlook=self.outlook.file() if self.outlook else None,
        ).write(path)


def read_law(path: str | os.PathLike[str]) -> FittedLaw:
    """A law from its file.

    Raises:
        FroudeError: not a law file, or its coefficients are not those of its law.
    """
    file = LawFile.read(path)
    law = LAWS.get(file.law).for_table({name: np.zeros(0) for name in file.columns})
    names = [symbol.name for symbol in law.symbols]
    if set(names) != set(file.coefficients) or set(names) != set(file.draws):
        raise FroudeError(f"{path}: coefficients should be {', '.join(names)}")
    return FittedLaw(
        law,
        pack(law.symbols, file.coefficients),
        pack(law.symbols, {name: np.asarray(file.draws[name]) for name in names}),
        np.asarray(file.residuals),
        file.ranges,
        file.n,
        file.provenance or f"{law.name} from {path}",
        outlook=Outlook.from_file(law, file.outlook) if file.outlook else None,
    )


def interval(draws: Floats, value: float | None = None) -> tuple[float, float]:
    """80% interval of draws; contains ``value``."""
    usable = draws[np.isfinite(draws)]
    if not len(usable):
        return (float("nan"), float("nan")) if value is None else (value, value)
    low, high = float(np.quantile(usable, LOW)), float(np.quantile(usable, HIGH))
    return (low, high) if value is None else (min(low, value), max(high, value))
