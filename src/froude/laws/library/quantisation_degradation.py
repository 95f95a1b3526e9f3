"""Ouyang's law of quantisation-induced degradation: low bits hurt small and long-trained models most.

The rise of loss when a trained model's weights are quantised is a product of powers of tokens, parameters and bits, so
that it measures how fully a model is trained; see `post-quantisation` for Kumar's form of the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values


class QuantisationDegradation(Law):
    """dL = k D^beta / (N^alpha P^gamma)."""

    name = "quantisation-degradation"
    source = Source(
        "Ouyang et al.",
        2024,
        "Low-Bit Quantization Favors Undertrained LLMs: Scaling Laws for Quantized LLMs with 100T Training Tokens",
        "arXiv:2411.17691",
        catalogue=276,
    )
    form = "dL = k D^beta / (N^alpha P^gamma); N without embeddings"
    inputs = ("params", "tokens", "weight_bits")
    target = "loss_rise"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients."""
        return (
            Symbol("k", "nats", 1e-5, 1e2, "log", "size of the rise"),
            Symbol("beta", "1", 0.05, 1.5, "log", "exponent of tokens"),
            Symbol("alpha", "1", 0.05, 1.0, "log", "exponent of parameters"),
            Symbol("gamma", "1", 1.0, 12.0, "log", "exponent of bits"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Rise of loss in nats per token."""
        c = coefficients
        return c["k"] * np.exp(
            c["beta"] * np.log(inputs["tokens"])
            - c["alpha"] * np.log(inputs["params"])
            - c["gamma"] * np.log(inputs["weight_bits"])
        )


def tokens_to_rise(rise: Any, params: Any, weight_bits: Any, coefficients: Values) -> Any:
    """Training tokens at which quantisation costs ``rise`` nats: the paper's measure of a full training."""
    at_one = QuantisationDegradation().predict(
        {"params": params, "tokens": 1.0, "weight_bits": weight_bits}, coefficients
    )
    return np.exp(np.log(rise / at_one) / coefficients["beta"])
