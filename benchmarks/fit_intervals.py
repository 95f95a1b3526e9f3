"""How far measured steps fall from predictions, within sources and between them.

    python benchmarks/fit_intervals.py train_measured.csv

Prints the standard deviations that ``training/accuracy.toml`` ships, sources weighted alike: of runs about the common
factor of their source (from the distance that holds 80% of them), and of those factors.
"""

from __future__ import annotations

import sys

import numpy as np

from froude.core.estimate import NORMAL_80
from froude.training.measured import check_train
from froude.training.scores import MIN_ROWS


def main() -> None:
    """Print the figures."""
    check = check_train(sys.argv[1])
    for kind in check.kinds():
        factors = []
        sources: dict[str, list[float]] = {}
        for item in check.scored:
            if item.kind == kind:
                sources.setdefault(item.source, []).append(float(np.log(item.measured / item.predicted)))
        within = []
        for ratios in sources.values():
            if len(ratios) < MIN_ROWS:
                continue
            factor = float(np.median(ratios))
            within.append(float(np.quantile(np.abs(np.array(ratios) - factor), 0.8)) / NORMAL_80)
            factors.append(factor)
        print(f"within.{kind} = {np.sqrt(np.mean(np.square(within))):.3f}")
        print(f"between.{kind} = {np.sqrt(np.mean(np.square(factors))):.3f}")


if __name__ == "__main__":
    main()
