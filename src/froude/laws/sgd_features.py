"""SGD on structured features, solved: the exact mean loss of minibatch SGD on linear regression, mode by mode.

With Gaussian features of covariance eigenvalues lambda_k, one step at rate eta and batch m takes the mean squared error
c_k of mode k to ((1 - eta lambda_k)^2 + eta^2 lambda_k^2 / m) c_k + eta^2 lambda_k (sum_j lambda_j c_j + s^2) / m: the
spectrum of the features decides the loss curve, and which batch is worth its compute.

Source: Bordelon and Pehlevan (2021), Learning Curves for SGD on Structured Features, arXiv:2106.02713.
"""

from __future__ import annotations

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import InvalidValueError
from froude.core.registry import Source

source = Source(
    "Bordelon and Pehlevan",
    2021,
    "Learning Curves for SGD on Structured Features",
    "arXiv:2106.02713",
    catalogue=119,
)


def learning_curve(
    eigenvalues: Floats, target: Floats, rate: float, batch: int, steps: int, noise_variance: float = 0.0
) -> Floats:
    """Expected test loss after 0, 1, ..., ``steps`` steps from zero weights.

    Args:
        eigenvalues: of the features' covariance.
        target: coefficients of the target in that basis.
        rate, batch: of SGD on half the mean squared error.
        noise_variance: of the labels.
    """
    if batch < 1 or rate <= 0:
        raise InvalidValueError("batch, rate", (batch, rate), "must be positive")
    error = target**2
    shrink = (1.0 - rate * eigenvalues) ** 2 + rate**2 * eigenvalues**2 / batch
    losses = np.empty(steps + 1)
    losses[0] = eigenvalues @ error
    for step in range(steps):
        error = shrink * error + rate**2 * eigenvalues * (eigenvalues @ error + noise_variance) / batch
        losses[step + 1] = eigenvalues @ error
    return losses


def best_batch(
    eigenvalues: Floats, target: Floats, examples: int, batches: list[int], rates: Floats, noise_variance: float = 0.0
) -> int:
    """The batch of least loss at a budget of examples, each batch at its best rate."""
    final = {
        batch: min(
            float(learning_curve(eigenvalues, target, rate, batch, examples // batch, noise_variance)[-1])
            for rate in rates
        )
        for batch in batches
    }
    return min(final, key=lambda batch: final[batch] if np.isfinite(final[batch]) else np.inf)
