"""Sorscher's data pruning: with the easy examples left out, error can fall exponentially where it fell as a power.

The theory is a perceptron that separates examples with the widest margin, taught by another one, from the share of
examples nearest to the teacher's boundary. While data are few the hard ones teach less than any; of many,
`smallest_share` is enough.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.special import ndtr, ndtri

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

EXAMPLES = (0.02, 300.0)  # kept examples per parameter that the theory is tabulated for
SHARES = (0.02, 1.0)


class DataPruning(Law):
    """error = E(k x, f); x kept examples per parameter, f their share, E the perceptron's."""

    name = "data-pruning"
    source = Source(
        "Sorscher et al.",
        2022,
        "Beyond neural scaling laws: beating power law scaling via data pruning",
        "arXiv:2206.14486",
        catalogue=9,
    )
    form = "error = E(k x, f); x kept examples per parameter, f the share kept, E of a max-margin perceptron"
    inputs = ("examples_per_param", "share")
    target = "error"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """One coefficient."""
        return (Symbol("k", "1", 0.05, 5.0, "log", "parameters over those that the task takes"),)

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Test error. The table is interpolated, so that a complex step is expanded to first order."""
        k, surface = np.asarray(coefficients["k"]), _surface()
        examples = np.log(np.clip(np.real(k) * inputs["examples_per_param"], *EXAMPLES))
        share = np.log(np.clip(inputs["share"], *SHARES)) + 0.0 * examples
        error = np.exp(surface.ev(examples, share))
        if not np.iscomplexobj(k):
            return error
        slope = error * surface.ev(examples, share, dx=1) / np.real(k)
        return error + 1j * np.imag(k) * slope


def smallest_share(examples_per_param: float, tolerance: float = 0.02) -> float:
    """The least share, nearest to the boundary first, whose error is that of all examples within a tolerance."""
    shares = np.geomspace(*SHARES, 60)
    errors = np.array([perceptron_error(examples_per_param * share, share) for share in shares])
    return float(shares[int(np.argmax(errors <= errors[-1] * (1.0 + tolerance)))])


def perceptron_error(examples_per_param: float, share: float) -> float:
    """Test error of the widest-margin perceptron, for many dimensions.

    Of all overlaps R with the teacher the student has the one that allows the widest margin m, where
    x E[(m - R |z| - sqrt(1 - R^2) u)_+^2] = 1 - R^2; z is the teacher's field, u the rest of the student's, Gaussian.
    """
    nodes, weights = np.polynomial.legendre.leggauss(24)
    field = ndtri(0.5 + 0.25 * share * (nodes + 1.0))[:, None]  # |z| at equal steps of its distribution
    angle = np.geomspace(1e-4, np.pi / 2 - 1e-4, 120)
    overlap, rest = np.cos(angle), np.sin(angle)
    margin = overlap * field.max() + rest / np.sqrt(examples_per_param)
    for _ in range(16):  # Newton's method, from above on a convex function
        ahead = (margin - overlap * field) / rest
        density = np.exp(-0.5 * ahead**2) / np.sqrt(2.0 * np.pi)
        filled = ndtr(ahead)
        square = 0.5 * weights @ ((ahead**2 + 1.0) * filled + ahead * density)
        slope = weights @ (ahead * filled + density)
        margin = margin - rest * (square - 1.0 / examples_per_param) / slope
    best = int(np.argmax(margin))
    near = slice(max(best - 1, 0), best + 2)
    curve, incline, _ = np.polyfit(np.log(angle[near]), margin[near], 2) if len(angle[near]) == 3 else (0.0, 0.0, 0.0)
    exact = np.exp(-0.5 * incline / curve) if curve < 0 else angle[best]
    return float(exact / np.pi)


@cache
def _surface() -> RectBivariateSpline:
    examples, shares = np.geomspace(*EXAMPLES, 61), np.geomspace(*SHARES, 17)
    errors: Floats = np.array([[perceptron_error(x, f) for f in shares] for x in examples])
    return RectBivariateSpline(np.log(examples), np.log(shares), np.log(errors), kx=3, ky=3)
