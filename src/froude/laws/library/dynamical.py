"""Theory: Bordelon's dynamical model, gradient descent on random features of a power-law spectrum.

Time and size limit the loss with different exponents, so that compute-optimal training lengthens faster than models
grow; `exponents` gives them from the two powers that describe the task.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Dynamical(Law):
    """L = E + A t^(-(a - 1)/b) + B N^(-min(a - 1, 2 b))."""

    name = "dynamical"
    source = Source(
        "Bordelon et al.", 2024, "A Dynamical Model of Neural Scaling Laws", "arXiv:2402.01092", catalogue=58
    )
    form = "L = E + A t^(-(a - 1)/b) + B N^(-min(a - 1, 2 b)); spectrum k^-b, power of the target in mode k k^-a"
    inputs = ("params", "steps")

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Five coefficients."""
        return (
            Symbol("E", "nats", 0.1, 3.0, "log", "irreducible loss"),
            Symbol("A", "nats", 0.1, 1e5, "log", "size of the time term"),
            Symbol("B", "nats", 0.1, 1e5, "log", "size of the parameter term"),
            Symbol("a", "1", 1.05, 3.0, "bounded", "power of the target in the modes"),
            Symbol("b", "1", 1.01, 3.0, "bounded", "exponent of the spectrum"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Loss."""
        c = coefficients
        in_time, in_size = exponents(c["a"], c["b"])
        slow = c["A"] * np.exp(-in_time * np.log(inputs["steps"]))
        return c["E"] + slow + c["B"] * np.exp(-in_size * np.log(inputs["params"]))


def exponents(a: Any, b: Any) -> tuple[Any, Any]:
    """Exponents of training time and of model size."""
    size = np.where(np.real(a) - 1.0 < 2.0 * np.real(b), a - 1.0, 2.0 * b)
    return (a - 1.0) / b, size


def compute_exponents(a: float, b: float) -> tuple[float, float]:
    """Of loss against compute N t along the optimum, and of the optimal size."""
    in_time, in_size = (float(value) for value in exponents(a, b))
    return in_time * in_size / (in_time + in_size), in_time / (in_time + in_size)
