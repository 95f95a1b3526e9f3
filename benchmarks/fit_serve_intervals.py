"""How far measured serving runs fall from predictions.

    python benchmarks/fit_serve_intervals.py serve_measured.csv

Prints the standard deviations that ``serving/accuracy.toml`` ships, from the distance of ln(measured / predicted) that
holds 80% of the rows, cells of model, device and engine weighted alike; and the share of a model's rows that the
distance of all other models holds.
"""

from __future__ import annotations

import sys

import numpy as np

from froude.core.estimate import NORMAL_80
from froude.models.catalogue import resolve
from froude.serving.measured import check_serve


def distance(cells: list[list[float]]) -> float:
    """Of zero, that holds 80%, cells weighted alike."""
    values = np.abs(np.concatenate(cells))
    weights = np.concatenate([np.full(len(cell), 1.0 / len(cell)) for cell in cells])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(reached, 0.8)])


def main() -> None:
    """Print the figures."""
    check = check_serve(sys.argv[1])
    for metric in check.by_metric():
        for kind in ("dense", "experts"):
            cells: dict[str, list[float]] = {}
            for item in check.scored:
                experts = resolve(item.cell.split("|")[0]).experts is not None
                if item.metric == metric and experts == (kind == "experts"):
                    cells.setdefault(item.cell, []).append(float(np.log(item.measured / item.predicted)))
            held = []
            for model in {cell.split("|")[0] for cell in cells}:
                others = [ratios for cell, ratios in cells.items() if cell.split("|")[0] != model]
                own = [ratios for cell, ratios in cells.items() if cell.split("|")[0] == model]
                if others:
                    width = distance(others)
                    held += [float(np.mean(np.abs(ratios) <= width)) for ratios in own]
            if cells:
                share = f", {np.mean(held):.0%} of models held out" if held else ""
                found = distance(list(cells.values())) / NORMAL_80
                print(f"{metric}.{kind} = {found:.3f} from {len(cells)} cells{share}")


if __name__ == "__main__":
    main()
