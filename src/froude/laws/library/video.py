"""Video diffusion transformers: loss is a sum of powers of training tokens and parameters, at tuned rate and batch.

Video is more sensitive to both than text is, so that they are fitted first (`video-batch`, `video-rate`): a law through
runs at one setting chooses models that are too large.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from froude.core.registry import Source
from froude.laws.law import Law, Symbol, Values


class Video(Law):
    """L = (T_c / T)^alpha_T + (N_c / N)^alpha_N + L_inf."""

    name = "video"
    source = Source(
        "Yin et al.",
        2024,
        "Towards Precise Scaling Laws for Video Diffusion Transformers",
        "arXiv:2411.17470",
        catalogue=228,
    )
    form = "L = (T_c / T)^alpha_T + (N_c / N)^alpha_N + L_inf"
    target = "diffusion_loss"

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Five coefficients."""
        return (
            Symbol("T_c", "tokens", 1.0, 1e9, "log", "tokens where their term is one"),
            Symbol("alpha_T", "1", 0.05, 1.0, "log", "exponent of tokens"),
            Symbol("N_c", "parameters", 1.0, 1e8, "log", "parameters where their term is one"),
            Symbol("alpha_N", "1", 0.05, 1.0, "log", "exponent of parameters"),
            Symbol("L_inf", "1", 0.01, 2.0, "log", "irreducible loss"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Validation loss of the diffusion objective."""
        c = coefficients
        data = c["alpha_T"] * (np.log(c["T_c"]) - np.log(inputs["tokens"]))
        size = c["alpha_N"] * (np.log(c["N_c"]) - np.log(inputs["params"]))
        return np.exp(data) + np.exp(size) + c["L_inf"]

    def allocate(self, flops: Any, coefficients: Values) -> dict[str, Any]:
        """The minimum at 6 N T FLOPs, where the two terms' slopes meet."""
        c = coefficients
        total = c["alpha_N"] + c["alpha_T"]
        balance = (
            np.log(c["alpha_N"] / c["alpha_T"])
            + c["alpha_N"] * np.log(c["N_c"])
            + c["alpha_T"] * (np.log(flops / 6.0) - np.log(c["T_c"]))
        )
        params = np.exp(balance / total)
        return {"params": params, "tokens": flops / 6.0 / params}
