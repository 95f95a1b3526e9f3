"""How fast fitting is: the figures that a change to the optimiser must not spoil."""

from __future__ import annotations

import time

import numpy as np

from froude.laws.fitting import fit
from froude.laws.library.besiroglu import Besiroglu
from froude.laws.published import published

POINTS, STARTS, RESAMPLES, SEEDS = 240, 500, 1000, 10
NOISE = 0.005  # of log loss, about that of Hoffmann's runs


def bench_laws() -> dict[str, float]:
    """Seconds for 240 points, 5 parameters and 500 starts, and for 1,000 bootstraps; seeds that find the same minimum.

    Processor time: what one core would take.
    """
    rng = np.random.default_rng(0)
    params, flops = 10 ** rng.uniform(7.8, 10.2, POINTS), 10 ** rng.uniform(18.5, 21.5, POINTS)
    table = {"params": params, "tokens": np.maximum(flops / 6.0 / params, params)}
    truth = published(Besiroglu).values()
    table["loss"] = Besiroglu().predict(table, truth) * np.exp(NOISE * rng.standard_t(3, POINTS))
    began = time.process_time()
    best = fit("besiroglu", table, starts=STARTS)
    fit_s = time.process_time() - began
    began = time.process_time()
    fit("besiroglu", table, starts=STARTS, bootstrap=RESAMPLES)
    with_bootstrap_s = time.process_time() - began
    again = [fit("besiroglu", table, seed=seed).objective for seed in range(SEEDS)]
    same = sum(abs(value / best.objective - 1.0) < 1e-6 for value in again)
    return {
        "points": POINTS,
        "starts": STARTS,
        "fit_cpu_s": fit_s,
        "bootstraps": RESAMPLES,
        "bootstrap_cpu_s": with_bootstrap_s - fit_s,
        "seeds": SEEDS,
        "seeds_at_the_same_minimum": same,
    }
