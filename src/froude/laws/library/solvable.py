"""Theory: Maloney's solvable model, ridge regression on random features of data whose spectrum is a power law.

Features and samples play the same part: loss is a power of the scarcer, with one exponent alpha, until the finite
spectrum of the data is exhausted. `expected_loss` is the solution, of which the law is the summary.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Solvable(Law):
    """L = (N_c / N + D_c / D)^alpha."""

    name = "solvable"
    source = Source(
        "Maloney et al.", 2022, "A Solvable Model of Neural Scaling Laws", "arXiv:2210.16859", catalogue=310
    )
    form = "L = (N_c / N + D_c / D)^alpha; the data's spectrum falls as k^-(1 + alpha)"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Three coefficients."""
        return (
            Symbol("N_c", "parameters", 1.0, 1e15, "log", "features for a loss of one"),
            Symbol("D_c", "tokens", 1.0, 1e15, "log", "samples for a loss of one"),
            Symbol("alpha", "1", 0.02, 2.0, "log", "exponent of the spectrum, less one"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Test loss."""
        c = coefficients
        return np.exp(c["alpha"] * np.log(c["N_c"] / inputs["params"] + c["D_c"] / inputs["tokens"]))


def expected_loss(spectrum: Floats, features: int, samples: int, ridge: float = 1e-6) -> float:
    """Mean squared test error of ridge regression on random linear features, for many features and samples.

    The data have covariance eigenvalues ``spectrum``; the target is linear in them with independent weights of variance
    one. Scarcity adds to the ridge that the spectrum feels: gamma solves gamma (1 - z/N) (1 - z/T) = ridge / T, with z
    the number of modes learned.
    """
    low, high = 1e-18, float(spectrum.sum()) + ridge
    for _ in range(200):
        gamma = (low * high) ** 0.5
        learned = float((spectrum / (spectrum + gamma)).sum())
        enough = learned < min(features, samples)
        enough = enough and gamma * (1.0 - learned / features) * (1.0 - learned / samples) > ridge / samples
        low, high = (low, gamma) if enough else (gamma, high)
    shares = spectrum / (spectrum + high)
    learned, squared = float(shares.sum()), float((shares**2).sum())
    kappa = high * (1.0 - learned / features)
    spared = kappa * shares / (spectrum + high) * features / (features - squared)
    missed = float(spectrum @ (1.0 - shares - spared))
    variance = (squared * (features - 2.0 * learned) + learned**2) / (samples * (features - squared))
    return missed / (1.0 - variance)
