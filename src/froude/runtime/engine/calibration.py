"""Learn this machine from a few iterations: the coefficients of an iteration's time, for the simulator to use.

The engine's iteration is affine in what it does: a fixed part (weights read, Python), so much more once the matrices
meet more than one row, and so much per decoding sequence, per key it reads, per prompt, per prompt token and per
query-key pair of prompts. The coefficients come out of a robust fit with none below zero, so that a stretch during
which something else used the machine does not bend them; all are then raised together until they account for the time
that went by, because latencies and throughput are sums of iterations, whatever slowed those down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.serving.iteration import IterationTime, Prompts
from froude.serving.metrics import PS

_FOREVER = 1 << 60
_STALL = 2.0  # an iteration longer than this many times what was fitted was an accident, not the machine's pace
_NOISE = 0.2  # logarithmic residuals beyond this count as disturbance: their pull no longer grows
TERMS = ("base", "rows", "decoding", "key", "prompt", "prompt_token", "pair")


@dataclass(frozen=True, slots=True)
class Measured:
    """One iteration that was timed. The fields are those of `IterationTime.segment`."""

    decoding: int
    context: int
    prompts: tuple[tuple[int, int], ...]
    duration_s: float
    processor_s: float  # of the engine's thread: less than the duration when others had the processor


@dataclass(frozen=True, slots=True)
class FittedIterationTime(IterationTime):
    """Integer picoseconds for each of `TERMS`."""

    base_ps: int
    rows_ps: int
    decoding_ps: int
    key_ps: int
    prompt_ps: int
    prompt_token_ps: int
    pair_ps: int

    def segment(self, decoding: int, context: int, prompts: Prompts) -> tuple[int, int, int]:
        """Row counts do not change within a segment, so one affine piece lasts for ever."""
        terms = _terms(decoding, context, prompts)
        coefficients = (
            self.base_ps,
            self.rows_ps,
            self.decoding_ps,
            self.key_ps,
            self.prompt_ps,
            self.prompt_token_ps,
            self.pair_ps,
        )
        first = sum(coefficient * term for coefficient, term in zip(coefficients, terms, strict=True))
        slope = decoding * self.key_ps + self.pair_ps * sum(tokens * tokens for tokens, _ in prompts)
        return first, slope, _FOREVER

    def scaled(self, factor: float) -> FittedIterationTime:
        """A machine that takes so many times as long for everything."""
        return FittedIterationTime(*(round(getattr(self, f"{term}_ps") * factor) for term in TERMS))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted iteration time and how well it describes what it was fitted to.

    Attributes:
        time: for the simulator.
        iterations: how many were measured.
        median_ape: median relative error over them.
        disturbance: by how much the coefficients were raised after the robust fit.
        longest_sequence: most tokens of one sequence that an iteration held.
    """

    time: FittedIterationTime
    iterations: int
    median_ape: float
    disturbance: float
    longest_sequence: int


def fit_iteration_time(measured: Sequence[Measured]) -> Calibration:
    """Robust non-negative least squares on logarithmic errors.

    Raises:
        FroudeError: when there are fewer iterations than coefficients.
    """
    if len(measured) < 2 * len(TERMS):
        raise FroudeError(f"calibration: {len(measured)} iterations are too few; at least {2 * len(TERMS)} are needed")
    terms = np.array([_terms(m.decoding, m.context, m.prompts) for m in measured], dtype=np.float64)
    seconds = np.array([m.duration_s for m in measured])
    most = (terms / seconds[:, None]).max(axis=0)
    scaled = terms / np.where(most > 0, most, 1.0)

    def error(x: Floats) -> Floats:
        return np.log(np.maximum(scaled @ x, 1e-12) / seconds)

    start = np.full(len(TERMS), 1.0 / len(TERMS))
    fit = least_squares(error, start, bounds=(0.0, np.inf), loss="soft_l1", f_scale=_NOISE)
    coefficients = fit.x / np.where(most > 0, most, 1.0)
    fitted = terms @ coefficients
    disturbance = float(np.minimum(seconds, _STALL * fitted).sum() / fitted.sum())
    coefficients, fitted = coefficients * disturbance, fitted * disturbance
    return Calibration(
        time=FittedIterationTime(*(round(c * 1e12) for c in coefficients)),
        iterations=len(measured),
        median_ape=float(np.median(np.abs(fitted / seconds - 1.0))),
        disturbance=disturbance,
        longest_sequence=max(max(m.context // max(1, m.decoding), *map(sum, m.prompts), 0) for m in measured),
    )


def _terms(decoding: int, context: int, prompts: Prompts) -> tuple[int, int, int, int, int, int, int]:
    tokens = sum(count for count, _ in prompts)
    pairs = sum(count * prefix + count * (count + 1) // 2 for count, prefix in prompts)
    return 1, int(decoding + tokens > 1), decoding, context, len(prompts), tokens, pairs


def seconds_of(time: IterationTime, measured: Iterable[Measured]) -> float:
    """What iterations of those compositions take."""
    return sum(time.segment(m.decoding, m.context, m.prompts)[0] for m in measured) / PS
