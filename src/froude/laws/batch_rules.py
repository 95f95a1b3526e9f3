"""What else must change when the batch changes: learning rate, Adam's moments, weight averages, the stable maximum.

Each rule keeps the path per example the same as the batch grows by a factor; all are for small enough steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source

ADAM_SDE = Source(
    "Malladi et al.",
    2022,
    "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
    "arXiv:2205.10287",
    catalogue=256,
)
EMA = Source("Busbridge et al.", 2023, "How to Scale Your EMA", "arXiv:2307.13813", catalogue=100)
RANDOM_MATRIX = Source(
    "Granziol et al.",
    2020,
    "Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training",
    "arXiv:2006.09092",
    catalogue=173,
)
LINEAR = Source(
    "Goyal et al.",
    2017,
    "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
    "arXiv:1706.02677",
    catalogue=55,
)
DECENTRALISED = Source(
    "Zhu et al.",
    2023,
    "Decentralized SGD and Average-direction SAM are Asymptotically Equivalent",
    "arXiv:2306.02913",
    catalogue=261,
)


@dataclass(frozen=True, slots=True)
class Adam:
    """Hyper-parameters of Adam."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8


def linear_rate(learning_rate: float, factor: float) -> float:
    """SGD: a batch ``factor`` times larger bears a rate as much larger (Goyal et al., 2017)."""
    return learning_rate * factor


def adam_square_root(settings: Adam, factor: float) -> Adam:
    """Adam where noise dominates: rate by the root, 1 - beta in proportion (Malladi et al., 2022)."""
    return Adam(
        learning_rate=settings.learning_rate * factor**0.5,
        beta1=max(0.0, 1.0 - factor * (1.0 - settings.beta1)),
        beta2=max(0.0, 1.0 - factor * (1.0 - settings.beta2)),
        epsilon=settings.epsilon / factor**0.5,
    )


def ema_momentum(momentum: float, factor: float) -> float:
    """An average of weights, momentum rho per step: rho^factor (Busbridge et al., 2023)."""
    return float(momentum**factor)


def largest_batch_eigenvalue(signal: float, noise_deviation: float, batch: float) -> float:
    """Largest eigenvalue of a minibatch's Hessian: signal and noise of deviation s / sqrt(B) (Granziol et al., 2020).

    Above the edge of the noise's semicircle the signal is lifted by sigma^2 / signal; below it, only the edge is seen.
    """
    sigma = noise_deviation / batch**0.5
    return float(signal + sigma**2 / signal if signal > sigma else 2.0 * sigma)


def largest_stable_rate(signal: float, noise_deviation: float, batch: float, *, adaptive: bool = False) -> float:
    """2 over that eigenvalue for SGD; adaptive methods divide by its root already, and take the square root."""
    bound: float = 2.0 / largest_batch_eigenvalue(signal, noise_deviation, batch)
    return float(bound**0.5) if adaptive else bound


def consensus_distance(rate: float, noise_variance: float, batch: float, gossip: Floats) -> float:
    """Mean squared distance of workers from their average under decentralised SGD (Zhu et al., 2023).

    It is the variance of the random directions along which the averaged gradient is taken, and so of the sharpness that
    is avoided: set by the batch of one worker, it stays when more workers make the total batch larger, while the noise
    of the averaged gradient fades.

    Args:
        rate: learning rate.
        noise_variance: of a gradient of one example, summed over parameters.
        batch: examples of one worker.
        gossip: the mixing matrix (symmetric, rows summing to one); gradients are mixed with the weights.
    """
    values = np.sort(np.abs(np.linalg.eigvalsh(gossip)))[:-1]
    return float(rate**2 * noise_variance / batch * np.sum(values**2 / (1.0 - values**2)) / len(gossip))


def ring(workers: int) -> Floats:
    """Mixing matrix of a ring: a third each from oneself and both neighbours."""
    one = np.eye(workers)
    return np.asarray((one + np.roll(one, 1, axis=0) + np.roll(one, -1, axis=0)) / 3.0)
