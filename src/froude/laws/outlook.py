"""How a fitted law predicts runs it has not seen: led by large runs and by its misfit nearby, with tried intervals.

A form misses its data in a pattern, and neighbouring runs are missed alike. The law is refitted with weight on large
runs, and what it still misses is a Gaussian process over the logarithms of its inputs. How much weight, and how far a
misfit reaches, are judged by how well larger runs of this table follow from its smaller ones (rolling origin). Few runs
cannot settle on one of these members, so all predict, the better ones more. Intervals are the members' own together,
scaled so that they would have covered: each run from all others among the data, the larger from the smaller beyond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.core.spec import Spec
from froude.laws.law import Law, pack, unpack
from froude.laws.objective import emphasised, minimise, residual_function, sizes

source = Source(
    "Kennedy and O'Hagan",
    2001,
    "Bayesian Calibration of Computer Models",
    "J. R. Statist. Soc. B 63(3), 425-464",
)

POWERS = (0.0, 1.0, 2.0)  # of compute, as weights of runs
REACHES = (1.0, 0.25, 0.0)  # of a misfit, as a share of the likeliest length; 0: the law alone
# A member's share goes with the inverse of its error to this power: of two, one half as good again counts a fifth.
STEEP = 4.0
ORIGINS, AHEAD = (0.85, 0.7, 0.55), 0.15  # shares of the rows, by size, to predict the next from; how many next
STARTS = 20
LEAST_ROWS = 3  # per coefficient; fewer say nothing of how the law misses them
MOST_ROWS, LIKELIHOOD_ROWS, LAPS = 400, 150, 60
COVER = 0.8
LENGTH, LENGTH_SPREAD = 1.5, 0.7  # of the misfit, in standard deviations of the inputs: prior, as a log-normal
# Seeds and orders of small runs move the log loss by this much: Porian et al. (2024), figure 8, and DataDecide's seeds.
NOISE, NOISE_SPREAD = 0.004, 0.8
SIZE_SPREAD = 1.5  # of the misfit's size around the residuals': log-normal
COEFFICIENT_SPREAD = 2.0  # prior of a coefficient around its fit, in the optimiser's (mostly logarithmic) coordinates
OUTLIER = 6.0  # robust standard deviations at which a residual is held
FLAT = 1e-9

Data = Mapping[str, Floats]


class MemberFile(Spec):
    """A member on disk."""

    coefficients: dict[str, float]
    misses: list[float]
    length: float
    size: float
    noise: float
    reach: float
    power: float
    share: float


class OutlookFile(Spec):
    """An outlook on disk: what `Outlook` cannot derive again."""

    rows: dict[str, list[float]]
    members: list[MemberFile]
    inside: float
    outside: float


@dataclass(frozen=True)
class Member:
    """A law, its coefficients for prediction, and a Gaussian process of what it misses.

    Attributes:
        rows: inputs of the runs behind it (at most `MOST_ROWS`).
        misses: observed against predicted there (log ratio or difference), outliers held.
        length, size, noise: of the process: how far a misfit reaches (in standard deviations of the inputs), how large
            it is, and what a single run adds.
        reach: share of the length taken; 0 says nothing of one run by another.
        power: runs were weighed by compute to this power.
        share: of this member in the outlook.
    """

    law: Law
    theta: Floats
    rows: Data
    misses: Floats
    length: float
    size: float
    noise: float
    reach: float = 1.0
    power: float = 0.0
    share: float = 1.0

    def ahead(self, inputs: Data) -> tuple[Floats, Floats]:
        """Prediction (of the logarithm, where the law counts so) of new runs and its standard deviation."""
        values = unpack(self.law.symbols, self.theta[None, :])
        with np.errstate(all="ignore"):
            law = np.asarray(self.law.predict(inputs, values), dtype=float)
            law = np.log(law) if self.law.residual == "log" else law
        near = self._near(inputs)
        return np.broadcast_to(law, (1, len(near)))[0] + near @ self._pull, self._spread(inputs, near)

    def left_out(self) -> tuple[Floats, Floats]:
        """Each run's miss when predicted from all others, and its standard deviation.

        The coefficients have seen the run; the average run pulls them towards itself by p/n of its miss.
        """
        inverse = np.linalg.inv(self._plain)
        unseen = 1.0 - len(self.theta) / len(self.misses)
        missed = np.asarray(inverse @ self.misses / np.diag(inverse) / unseen)
        return missed, 1.0 / np.sqrt(np.diag(np.linalg.inv(self._full)))

    def beyond(self, inputs: Data) -> Floats:
        """How much of what the process could know of a run these runs do not tell: 0 among them, 1 far away."""
        near = self._near(inputs)
        known = np.sum(near * np.linalg.solve(self._plain, near.T).T, axis=1)
        return np.asarray(np.clip(1.0 - known / self.size**2, 0.0, 1.0))

    def file(self) -> MemberFile:
        """Plain data."""
        values = unpack(self.law.symbols, self.theta)
        return MemberFile(
            coefficients={name: float(value[..., 0]) for name, value in values.items()},
            misses=[float(v) for v in self.misses],
            length=self.length,
            size=self.size,
            noise=self.noise,
            reach=self.reach,
            power=self.power,
            share=self.share,
        )

    @cached_property
    def _frame(self) -> tuple[list[bool], Floats]:
        """Which inputs count by their logarithm, and the scale of each."""
        columns = [np.asarray(self.rows[name], dtype=float) for name in self.law.columns()]
        logs = [name in self.law.positive() for name in self.law.columns()]
        scale = np.array([np.std(np.log(c) if log else c) for c, log in zip(columns, logs, strict=True)])
        return logs, np.where(scale > FLAT, scale, 1.0)

    def _coordinates(self, inputs: Data) -> Floats:
        logs, scale = self._frame
        columns = [np.asarray(inputs[name], dtype=float) for name in self.law.columns()]
        stacked = [np.log(column) if log else column for column, log in zip(columns, logs, strict=True)]
        return np.stack(np.broadcast_arrays(*stacked), axis=1) / scale

    @cached_property
    def _points(self) -> Floats:
        return self._coordinates(self.rows)

    def _near(self, inputs: Data) -> Floats:
        """Covariance of what is missed at new runs with what is missed at these."""
        return self._covariance(self._coordinates(inputs))

    def _covariance(self, points: Floats) -> Floats:
        if self.reach == 0:
            return np.zeros((len(points), len(self.misses)))
        return self.size**2 * matern(points, self._points, self.reach * self.length)

    @cached_property
    def _plain(self) -> Floats:
        """Covariance of the misses at known coefficients."""
        alone = self.noise**2 + (self.size**2 if self.reach == 0 else 0.0)
        return self._covariance(self._points) + alone * np.eye(len(self.misses))

    @cached_property
    def _pull(self) -> Floats:
        return np.asarray(np.linalg.solve(self._plain, self.misses))

    @cached_property
    def _full(self) -> Floats:
        """Covariance of the misses when coefficients are uncertain too."""
        slopes = COEFFICIENT_SPREAD * self._slopes(self.rows)
        return np.asarray(self._plain + slopes @ slopes.T)

    def _slopes(self, inputs: Data) -> Floats:
        """By each coefficient, of the prediction (of its logarithm): (n, p)."""
        values = unpack(self.law.symbols, self.theta[None, :])
        with np.errstate(all="ignore"):
            value, partials = self.law.gradient(inputs, values)
        rows = max(np.size(column) for column in inputs.values())
        value = np.broadcast_to(value, (1, rows))[0]
        columns = [
            np.broadcast_to(partial * symbol.slope(values[symbol.name]), (1, rows))[0]
            for symbol, partial in zip(self.law.symbols, partials, strict=True)
        ]
        slopes = np.stack(columns, axis=1) / (value[:, None] if self.law.residual == "log" else 1.0)
        return np.where(np.isfinite(slopes), slopes, 0.0)

    def _spread(self, inputs: Data, near: Floats) -> Floats:
        """Standard deviation of a new run around the prediction: process, coefficients, noise."""
        slopes = self._slopes({name: inputs[name] for name in self.law.columns()})
        known = near + COEFFICIENT_SPREAD**2 * slopes @ self._slopes(self.rows).T
        prior = self.size**2 + self.noise**2 + COEFFICIENT_SPREAD**2 * (slopes**2).sum(axis=1)
        variance = prior - np.sum(known * np.linalg.solve(self._full, known.T).T, axis=1)
        return np.asarray(np.sqrt(np.maximum(variance, self.noise**2)))


@dataclass(frozen=True)
class Outlook:
    """Members that predict together, each by the share it has earned.

    Attributes:
        inside, outside: half-width of the 80% interval, in standard deviations of the members together, among the runs
            and beyond them.
    """

    members: tuple[Member, ...]
    inside: float = 1.2816
    outside: float = 1.2816

    @property
    def power(self) -> float:
        """Of compute, as weight of runs, that earned the largest share."""
        earned = {power: sum(m.share for m in self.members if m.power == power) for power in POWERS}
        return max(earned, key=lambda power: earned[power])

    def predict(self, inputs: Data) -> tuple[Floats, Floats, Floats]:
        """Prediction and 80% interval for new runs; inputs are arrays of one length."""
        said = [member.ahead(inputs) for member in self.members]
        centre, spread = together(said, [member.share for member in self.members])
        # Among the runs a process knows more than its prior; how much less it knows says how far outside we are.
        beyond = np.mean([member.beyond(inputs) for member in self.members if member.reach == 1.0], axis=0)
        width = (self.inside + beyond * (max(self.outside, self.inside) - self.inside)) * spread
        if self.members[0].law.residual == "log":
            return np.exp(centre), np.exp(centre - width), np.exp(centre + width)
        return centre, centre - width, centre + width

    def file(self) -> OutlookFile:
        """Plain data."""
        first = self.members[0]
        return OutlookFile(
            rows={name: [float(v) for v in first.rows[name]] for name in first.law.columns()},
            members=[member.file() for member in self.members],
            inside=self.inside,
            outside=self.outside,
        )

    @classmethod
    def from_file(cls, law: Law, file: OutlookFile) -> Outlook:
        """Back from plain data."""
        rows = {name: np.asarray(column) for name, column in file.rows.items()}
        members = tuple(
            Member(
                law,
                pack(law.symbols, one.coefficients),
                rows,
                np.asarray(one.misses),
                one.length,
                one.size,
                one.noise,
                one.reach,
                one.power,
                one.share,
            )
            for one in file.members
        )
        return cls(members, file.inside, file.outside)


def together(said: Sequence[tuple[Floats, Floats]], shares: Sequence[float]) -> tuple[Floats, Floats]:
    """Mean and standard deviation of what members say, each by its share: where they disagree, less is certain."""
    weight = np.asarray(shares)[:, None]
    centres, spreads = np.stack([c for c, _ in said]), np.stack([s for _, s in said])
    centres = np.where(weight > 0, centres, 0.0)
    centre = (weight * centres).sum(axis=0)
    return centre, np.sqrt((weight * (spreads**2 + (centres - centre) ** 2)).sum(axis=0))


def matern(first: Floats, second: Floats, length: float) -> Floats:
    """Matern covariance of smoothness 3/2 and unit variance."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2.0 * first @ second.T
    distance = np.sqrt(3.0 * np.maximum(squares, 0.0)) / length
    return np.asarray((1.0 + distance) * np.exp(-distance))


def look_ahead(law: Law, data: Data, seed: int = 0) -> Outlook | None:
    """The outlook of a law on a table; None where the runs are too few to judge by."""
    rows, least = len(data[law.target]), LEAST_ROWS * len(law.symbols)
    if rows < least:
        return None
    order = np.argsort(sizes(data), kind="stable")
    errors: list[list[float]] = []
    trials: list[tuple[list[tuple[Floats, Floats]], Floats]] = []
    for share in ORIGINS:
        end, until = round(rows * share), min(rows, round(rows * (share + AHEAD)))
        if end < len(law.symbols) + 3 or until <= end:
            continue
        known, ahead = _some(data, order[:end]), _some(data, order[end:until])
        observed = np.log(ahead[law.target]) if law.residual == "log" else ahead[law.target]
        said = [member.ahead(ahead) for member in _members(law, known, seed)]
        errors.append([_typical(observed - centre) for centre, _ in said])
        trials.append((said, observed))
    members = _members(law, data, seed)
    shares = np.full(len(members), 1.0 / len(members))
    if errors:
        shares = np.maximum(np.mean(errors, axis=0), FLAT) ** -STEEP
        shares /= shares.sum()
    missed, spread = together([member.left_out() for member in members], list(shares))
    inside = outside = _quantile(np.abs(missed / spread))
    if trials:
        scores = []
        for said, observed in trials:
            centre, spread = together(said, list(shares))
            scores.append(np.abs(observed - centre) / spread)
        beyond = np.concatenate(scores)
        outside = _quantile(beyond[np.isfinite(beyond)])
    return Outlook(tuple(replace(m, share=float(s)) for m, s in zip(members, shares, strict=True)), inside, outside)


def _members(law: Law, data: Data, seed: int) -> list[Member]:
    """One for each weight on large runs and each reach."""
    return [member for power in POWERS for member in _refitted(law, data, power, seed)]


def _refitted(law: Law, data: Data, power: float, seed: int) -> list[Member]:
    """The law refitted with a weight on large runs, its process as likely as can be, for each reach."""
    rng = np.random.default_rng(seed)
    nothing = np.zeros(len(law.symbols))
    theta, _, _ = minimise(law, emphasised(data, power), STARTS, rng, nothing, nothing)
    rows = _some(data, _thin(len(data[law.target]), MOST_ROWS, sizes(data)))
    residuals, slopes = residual_function(law, rows)(theta[None, :])
    misses = -residuals[0]
    scale = 1.4826 * float(np.median(np.abs(misses))) + FLAT
    misses = np.clip(misses, -OUTLIER * scale, OUTLIER * scale)
    inputs = {name: rows[name] for name in law.columns()}
    unit = 1.0 if law.residual == "log" else float(np.median(np.abs(rows[law.target])))
    first = Member(law, theta, inputs, misses, LENGTH, scale, NOISE * unit)
    length, size, noise = _likeliest(first, slopes[0].T, scale, NOISE * unit)
    return [Member(law, theta, inputs, misses, length, size, noise, reach, power) for reach in REACHES]


def _likeliest(member: Member, slopes: Floats, scale: float, noise: float) -> tuple[float, float, float]:
    """Length, size and noise of the process by restricted likelihood (coefficients projected out), with priors."""
    from scipy.linalg import LinAlgError, cholesky, solve_triangular
    from scipy.optimize import minimize

    keep = _thin(len(member.misses), LIKELIHOOD_ROWS, member.misses)
    points, misses = member._points[keep], member.misses[keep]
    basis = np.linalg.svd(np.where(np.isfinite(slopes[keep]), slopes[keep], 0.0), full_matrices=False)[0]
    start = np.log([LENGTH, scale, noise])
    spread = np.array([LENGTH_SPREAD, SIZE_SPREAD, NOISE_SPREAD])

    def against(logs: Floats) -> float:
        length, size, noise = np.exp(logs)
        covariance = size**2 * matern(points, points, length) + noise**2 * np.eye(len(points))
        try:
            lower = cholesky(covariance, lower=True)
            whitened = solve_triangular(lower, np.column_stack([basis, misses]), lower=True)
            design, target = whitened[:, :-1], whitened[:, -1]
            curvature = design.T @ design
            explained = (design.T @ target) @ np.linalg.solve(curvature, design.T @ target)
        except (LinAlgError, np.linalg.LinAlgError):
            return 1e12
        half = np.log(np.diag(lower)).sum() + 0.5 * np.linalg.slogdet(curvature)[1]
        return float(0.5 * (target @ target - explained) + half + 0.5 * (((logs - start) / spread) ** 2).sum())

    found = minimize(against, start, method="Nelder-Mead", options={"maxiter": LAPS})
    length, size, noise = np.exp(found.x)
    return float(length), float(size), float(noise)


def _typical(errors: Floats) -> float:
    """Median size of an error; endless where a law has no value."""
    return float(np.median(np.where(np.isfinite(errors), np.abs(errors), np.inf)))


def _quantile(scores: Floats) -> float:
    """The half-width that covers 80% of a next score (conformal: one run more than seen)."""
    return float(np.quantile(scores, min(1.0, COVER * (1.0 + 1.0 / len(scores)))))


def _thin(rows: int, most: int, by: Any) -> np.ndarray[Any, np.dtype[np.int_]]:
    """At most ``most`` rows, evenly along ``by``."""
    if rows <= most:
        return np.arange(rows)
    order = np.argsort(by, kind="stable")
    return np.asarray(np.sort(order[np.linspace(0, rows - 1, most).astype(int)]))


def _some(data: Data, rows: Any) -> dict[str, Floats]:
    return {name: column[rows] for name, column in data.items()}
