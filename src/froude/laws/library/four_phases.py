"""Theory: the phases of one-pass SGD on power-law random features, by which term of the loss the optimum balances.

Four terms (what the model cannot hold, the learning of the target with and without distortion by the features, the
noise of SGD) fall as powers of steps r and parameters d; the two that cross last set the compute-optimal size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class FourPhases(Law):
    """L = A r^-(1 + beta/alpha - 1/(2 alpha)) + B r^-(1 - 1/(2 alpha)) / d + G r^-(2 - 1/(2 alpha)) + C d^-capacity."""

    name = "four-phases"
    source = Source("Paquette et al.", 2024, "4+3 Phases of Compute-Optimal Neural Scaling Laws", "arXiv:2405.15074")
    form = (
        "L = A r^-(1 + beta/alpha - 1/(2 alpha)) + B r^-(1 - 1/(2 alpha)) / d + G r^-(2 - 1/(2 alpha)) "
        "+ C d^-(2 alpha - max(0, 1 - 2 beta)); alpha above one half, r steps, d parameters"
    )
    inputs = ("params", "steps")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Six coefficients."""
        return (
            Symbol("A", "nats", 0.1, 1e4, "log", "size of the target's own term"),
            Symbol("B", "nats", 0.1, 1e4, "log", "size of the term by distortion of features"),
            Symbol("G", "nats", 0.1, 1e4, "log", "size of SGD's noise"),
            Symbol("C", "nats", 0.1, 1e4, "log", "size of the capacity term"),
            Symbol("alpha", "1", 0.51, 2.0, "bounded", "feature j has variance j^-2 alpha"),
            Symbol("beta", "1", 0.1, 2.0, "bounded", "the target's coefficient in it is j^-beta"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss."""
        c = coefficients
        steps, size = np.log(inputs["steps"]), np.log(inputs["params"])
        pure, distorted, noise, capacity = exponents(c["alpha"], c["beta"])
        # Without distortion (beta below one half) the second term is not there.
        bends = np.where(np.real(c["beta"]) > 0.5, c["B"], 0.0 * c["B"])
        return (
            c["A"] * np.exp(-pure * steps)
            + bends * np.exp(-distorted * steps - size)
            + c["G"] * np.exp(-noise * steps)
            + c["C"] * np.exp(-capacity * size)
        )


def exponents(alpha: Any, beta: Any) -> tuple[Any, Any, Any, Any]:
    """Of steps in the pure, distorted and noise terms, and of parameters in the capacity term; alpha above 1/2."""
    half = 1.0 / (2.0 * alpha)
    capacity = 2.0 * alpha - np.where(np.real(beta) < 0.5, 1.0 - 2.0 * beta, 0.0 * beta)
    return 1.0 + beta / alpha - half, 1.0 - half, 2.0 - half, capacity


def phase(alpha: float, beta: float) -> str:
    """Ia, II or III: those where alpha is above one half, so that the loss does not hang on the data's dimension.

    The size is compute-optimal where the slower of the pure and the noise term meets the slower of the distorted and
    the capacity term.
    """
    if beta < 0.5:
        return "Ia"
    return "II" if beta < alpha else "III"


def optimal_size_exponent(alpha: float, beta: float) -> float:
    """Exponent of compute (steps x parameters) in the optimal size."""
    if beta < 0.5:
        return 1.0 / (2.0 * alpha + 1.0)
    return beta / (alpha + beta) if beta < alpha else 0.5


def loss_exponent(alpha: float, beta: float) -> float:
    """Exponent of compute in the loss along the optimum: a term of steps at the optimal number of steps."""
    steps = 1.0 - optimal_size_exponent(alpha, beta)
    pure, _, noise, _ = (float(value) for value in exponents(alpha, beta))
    return steps * (pure if beta < alpha or beta < 0.5 else noise)
