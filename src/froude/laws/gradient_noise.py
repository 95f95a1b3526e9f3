"""Gradient noise: how large a batch is worth using, from gradients measured at two batch sizes.

The mean gradient G is worth following as far as its noise allows: with per-example covariance Sigma, batches well below
B_simple = tr(Sigma) / |G|^2 save examples, batches well above it save steps, and B_crit divides the two.

Source: McCandlish et al. (2018), An Empirical Model of Large-Batch Training, arXiv:1812.06162. Batches are counted in
examples (or tokens): any unit, the same throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Array, Floats
from froude.core.errors import InvalidValueError
from froude.core.registry import Source

source = Source(
    "McCandlish et al.", 2018, "An Empirical Model of Large-Batch Training", "arXiv:1812.06162", catalogue=85
)


@dataclass(frozen=True, slots=True)
class GradientNoise:
    """Squared norm of the true gradient and trace of the per-example covariance."""

    gradient_squared: float
    noise_trace: float

    @property
    def simple_noise_scale(self) -> float:
        """B_simple = tr(Sigma) / |G|^2; infinite when the gradient cannot be told from noise."""
        if self.gradient_squared <= 0.0:
            return float("inf")
        return max(self.noise_trace, 0.0) / self.gradient_squared


def from_two_batches(small_squared: float, big_squared: float, small: float, big: float) -> GradientNoise:
    """Unbiased estimates from the squared norms of gradients averaged over a small and a big batch (appendix A.1).

    Args:
        small_squared: |g|^2 of a batch of ``small`` examples, best averaged over several.
        big_squared: |g|^2 of a batch of ``big`` examples.
        small: examples in the small batch, one rank's micro-batch say.
        big: examples in the big batch, the same after the all-reduce.

    Raises:
        InvalidValueError: unless 0 < small < big.
    """
    if not 0 < small < big:
        raise InvalidValueError("small", small, f"must be positive and below the big batch, {big:g}")
    gradient = (big * big_squared - small * small_squared) / (big - small)
    noise = (small_squared - big_squared) / (1.0 / small - 1.0 / big)
    return GradientNoise(gradient, noise)


def from_examples(gradients: Floats) -> GradientNoise:
    """From per-example gradients (examples, parameters), without bias."""
    count = len(gradients)
    if count < 2:
        raise InvalidValueError("gradients", count, "examples are too few; two or more are needed")
    mean = gradients.mean(axis=0)
    noise = float(((gradients - mean) ** 2).sum() / (count - 1))
    return GradientNoise(float(mean @ mean) - noise / count, noise)


class NoiseMeter:
    """The noise scale along a run: moving averages of |G|^2 and tr(Sigma), divided last, because their ratio is biased.

    Args:
        decay: of the moving averages; 0.99 remembers about a hundred steps.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self._gradient_squared = self._noise_trace = self._weight = 0.0

    def observe(self, small_squared: float, big_squared: float, small: float, big: float) -> None:
        """One step's squared gradient norms at two batch sizes."""
        now = from_two_batches(small_squared, big_squared, small, big)
        self._gradient_squared = self.decay * self._gradient_squared + (1.0 - self.decay) * now.gradient_squared
        self._noise_trace = self.decay * self._noise_trace + (1.0 - self.decay) * now.noise_trace
        self._weight = self.decay * self._weight + (1.0 - self.decay)

    @property
    def noise(self) -> GradientNoise | None:
        """The current averages; None before the first observation."""
        if not self._weight:
            return None
        return GradientNoise(self._gradient_squared / self._weight, self._noise_trace / self._weight)


def steps_to_target(min_steps: Array, critical_batch: Array, batch: Array) -> Array:
    """Steps to a loss at a batch: S = S_min (1 + B_crit / B), the hyperbola (S/S_min - 1)(E/E_min - 1) = 1."""
    return min_steps * (1.0 + critical_batch / batch)


def examples_to_target(min_steps: Array, critical_batch: Array, batch: Array) -> Array:
    """Examples to a loss at a batch: E = B S = E_min (1 + B / B_crit) with E_min = B_crit S_min."""
    return min_steps * (batch + critical_batch)


def efficiency(noise_scale: Array, batch: Array) -> Array:
    """What one step gains of what a step on the true gradient would: 1 / (1 + B_noise / B)."""
    return 1.0 / (1.0 + noise_scale / batch)


def best_learning_rate(max_learning_rate: Array, noise_scale: Array, batch: Array, exponent: float = 1.0) -> Array:
    """eta(B) = eta_max / (1 + B_noise / B)^exponent; exponent 1 for SGD, 0.5 to 1 for Adam."""
    return max_learning_rate / (1.0 + noise_scale / batch) ** exponent


def batch_for_overhead(critical_batch: Array, extra_examples: float) -> Array:
    """The batch that spends ``extra_examples`` (0.2: 20%) more examples than the least possible."""
    return critical_batch * extra_examples


def fastest_batch(critical_batch: float, step_s: Floats, batch: Floats) -> int:
    """Index of the batch with the shortest time to target: step time against steps needed, the knee of the two."""
    return int(np.argmin(np.asarray(step_s) * steps_to_target(1.0, critical_batch, np.asarray(batch))))
