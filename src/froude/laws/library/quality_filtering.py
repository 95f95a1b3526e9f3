"""Goyal's quality-quantity law: each pool of data has a utility that halves after so many repetitions.

Best data are few and soon repeated, so that a small budget wants them alone and a large one wants worse data as well:
`best_pools` says how many, from fits of single pools, without training on a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.law import LEAST_SQUARES, Law, Symbol, Values

MOST_EPOCHS = 200  # repetitions beyond teach nothing that could be told from none


class QualityFiltering(Law):
    """error = d + (s n)^-b, where epoch j after the first adds (n_j / n_(j-1))^(-b 2^(-j / tau))."""

    name = "quality-filtering"
    source = Source(
        "Goyal et al.",
        2024,
        "Scaling Laws for Data Filtering: Data Curation cannot be Compute Agnostic",
        "arXiv:2404.07177",
        catalogue=42,
    )
    form = "error = d + (s n_1)^-b prod_j (n_j / n_(j-1))^(-b 2^(-j / tau)); n_j samples seen after epoch j"
    inputs = ("samples_seen", "pool_samples")
    target = "error"
    delta = LEAST_SQUARES

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        """Four coefficients, fitted pool by pool; d belongs to the task."""
        return (
            Symbol("s", "1/sample", 1e-9, 1e-5, "log", "inverse of the samples where the reducible error is one"),
            Symbol("b", "1", 0.02, 0.6, "log", "utility of fresh samples"),
            Symbol("tau", "epochs", 0.5, 30.0, "log", "repetitions after which utility is halved"),
            Symbol("d", "1", 0.01, 0.5, "log", "irreducible error"),
        )

    def predict(self, inputs: Values, coefficients: Values) -> Any:
        """Error on the downstream task."""
        return _error(inputs["samples_seen"], inputs["pool_samples"], [coefficients])


def mixture_error(pools: Sequence[Values], samples_seen: Any, pool_samples: Any) -> Any:
    """Error of equal parts of several pools of ``pool_samples`` each, from their own fits.

    Utilities average; a union of p pools comes round p times later, so that its half-lives in epochs are p times longer
    in the paper's scaling of tau. The pools share s and d.
    """
    return _error(samples_seen, pool_samples * len(pools), pools)


def best_pools(pools: Sequence[Values], samples_seen: float, pool_samples: float) -> tuple[int, Floats]:
    """How many of the pools, best first, to train on at a budget of samples, and the error of each choice."""
    ranked = sorted(pools, key=lambda pool: -float(pool["b"]))
    errors = np.array(
        [float(mixture_error(ranked[: count + 1], samples_seen, pool_samples)) for count in range(len(ranked))]
    )
    return int(np.argmin(errors)) + 1, errors


def _error(seen: Any, unique: Any, pools: Sequence[Values]) -> Any:
    seen, unique = np.asarray(seen, dtype=float), np.asarray(unique, dtype=float)
    first = pools[0]
    power = -_utility(pools, 0) * (np.log(first["s"]) + np.log(np.minimum(seen, unique)))
    for epoch in range(1, min(int(np.ceil((seen / unique).max())), MOST_EPOCHS)):
        growth = np.maximum(np.minimum(seen, unique * (epoch + 1)) / (unique * epoch), 1.0)
        power = power - _utility(pools, epoch) * np.log(growth)
    return first["d"] + np.exp(power)


def _utility(pools: Sequence[Values], epoch: int) -> Any:
    count = len(pools)
    return sum(pool["b"] * np.exp(-np.log(2.0) * epoch / (pool["tau"] * count)) for pool in pools) / count
