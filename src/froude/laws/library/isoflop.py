"""Hoffmann's approach 2 (and 1): the parameters that minimise loss at a budget grow as a power of it.

Approach 2 fits parabolas through runs of equal FLOPs, approach 1 takes the envelope of training curves; both then fit a
power law through the minima. `minima` finds them from runs.
"""

from __future__ import annotations

import numpy as np

from froude.core.arrays import Floats
from froude.core.registry import Source
from froude.laws.library.porian import Porian
from froude.laws.table import Table

LEAST_RUNS = 4  # of one budget: a parabola through three runs leaves nothing to judge it by
SAME_BUDGET = 0.05  # relative; budgets closer than this are one isoFLOP curve


class Isoflop(Porian):
    """N* = c C^a through the minima of isoFLOP curves."""

    name = "isoflop"
    source = Source(
        "Hoffmann et al.",
        2022,
        "Training Compute-Optimal Large Language Models",
        "arXiv:2203.15556, approaches 1 and 2",
    )

    @classmethod
    def prepare(cls, table: Table) -> tuple[Table, str]:
        """Runs to the minima of their isoFLOP curves; a table without loss holds minima already."""
        if "loss" not in table:
            return table, ""
        found = minima(table)
        return found, f"{len(found['flops'])} minima of isoFLOP curves found among {len(table['loss'])} runs"


def minima(table: Table) -> dict[str, Floats]:
    """The best size at each budget, from runs with columns flops, params and loss.

    A parabola in log N around the best run of each budget, fitted to the runs nearest to it; budgets whose best run is
    their smallest or largest are left out, because their minimum is not bracketed.
    """
    flops, params, loss = (np.asarray(table[name], dtype=float) for name in ("flops", "params", "loss"))
    order = np.argsort(flops)
    found: dict[str, list[float]] = {"flops": [], "params": [], "loss": []}
    edges = np.flatnonzero(np.diff(np.log(flops[order])) > SAME_BUDGET) + 1
    for rows in np.split(order, edges):
        rows = rows[np.argsort(params[rows])]
        if len(np.unique(params[rows])) < LEAST_RUNS:
            continue
        best = int(np.argmin(loss[rows]))
        if best in (0, len(rows) - 1):
            continue
        near = rows[max(0, best - 3) : best + 4]
        x = np.log(params[near])
        curve, slope, _ = np.polyfit(x - x.mean(), loss[near], 2)
        if curve <= 0:
            continue
        centre = float(np.clip(-slope / (2 * curve) + x.mean(), x.min(), x.max()))
        found["flops"].append(float(np.exp(np.log(flops[rows]).mean())))
        found["params"].append(float(np.exp(centre)))
        found["loss"].append(float(np.polyval(np.polyfit(x, loss[near], 2), centre)))
    return {name: np.array(values) for name, values in found.items()}
