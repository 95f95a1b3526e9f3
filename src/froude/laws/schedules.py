"""Learning-rate schedules, the areas that decide their loss, and what a ladder of budgets costs with each.

A constant rate with a short cooldown ends as low as a cosine of the same length, and one long run gives every shorter
budget for the price of its cooldown; a cosine has to be run again for each.

Sources: Haegele et al. (2024), Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations,
arXiv:2405.18392; Tissue et al. (2024), Scaling Law with Learning Rate Annealing, arXiv:2408.11029.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import InvalidValueError
from froude.core.registry import Source

source = Source(
    "Haegele et al.",
    2024,
    "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations",
    "arXiv:2405.18392",
    catalogue=39,
)
COOLDOWN = 0.2  # share of the run in which the paper's default lowers the rate
FORGETTING = 0.999  # per step, of past drops of the rate, in the annealing area


def warmup(steps: int, warmup_steps: int) -> Floats:
    """A linear rise to one, by which any schedule is multiplied."""
    return np.minimum(1.0, (np.arange(steps) + 1.0) / max(warmup_steps, 1))


def cosine(steps: int, peak: float, warmup_steps: int = 0, floor: float = 0.1) -> Floats:
    """Half a cosine from the peak to ``floor`` times it; its length has to be known at the start."""
    progress = np.arange(steps) / max(steps - 1, 1)
    shape = floor + (1.0 - floor) * 0.5 * (1.0 + np.cos(np.pi * progress))
    return np.asarray(peak * shape * warmup(steps, warmup_steps))


def constant_cooldown(steps: int, peak: float, warmup_steps: int = 0, cooldown: float = COOLDOWN) -> Floats:
    """The peak, then 1 - sqrt(progress) of it down to zero in the last part of the run."""
    if not 0 <= cooldown <= 1:
        raise InvalidValueError("cooldown", cooldown, "is a share of the run, from 0 to 1")
    start = steps - round(cooldown * steps)
    progress = np.clip((np.arange(steps) - start + 1.0) / max(steps - start, 1), 0.0, 1.0)
    return np.asarray(peak * (1.0 - np.sqrt(progress)) * warmup(steps, warmup_steps))


def areas(rates: Floats, forgetting: float = FORGETTING) -> tuple[Floats, Floats]:
    """After each step the area under the rate and the area of its annealing, the inputs of the law `annealing`.

    Each drop of the rate counts at every later step, less by ``forgetting`` at each. Warm-up counts as area only.
    """
    drops = np.maximum(-np.diff(rates, prepend=rates[0]), 0.0)
    momentum, annealed = 0.0, np.empty(len(rates))
    for step, drop in enumerate(drops):
        momentum = forgetting * momentum + drop
        annealed[step] = momentum
    return np.cumsum(rates), np.cumsum(annealed)


def ladder_steps(lengths: Sequence[int], cooldown: float = COOLDOWN) -> tuple[int, int]:
    """Steps to train one model to each of several lengths: with cosines, and with cooldowns from one constant run."""
    longest = max(lengths)
    branches = sum(round(cooldown * length) for length in lengths if length != longest)
    return sum(lengths), longest + branches
