"""Were a source's steps measured, or added up from parts? Steps of one stage against a form linear in their parts.

    python benchmarks/added_up_steps.py train_measured.csv vTrain

Prints how closely ``m (a layers + b) + c layers + d`` fits the steps of equal width, tensor and data parallelism and
micro-batch, m micro-batches each: runs scatter by a percent, sums do not. Then, with one factor for each such cell of
width, tensor parallelism and micro-batch, what is left of the errors of predictions and of regret.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from froude.core.measurements import read_rows
from froude.training.choice import choice_alike, choices
from froude.training.measured import check_train

NODE = 8
"""Devices of a node: steps of larger clusters are left alone."""


def main(path: str, source: str) -> None:
    """Print the fit of each group of steps, and errors given each cell."""
    rows = [c for c in read_rows(path, ("step_s",)) if str(c["source"]).startswith(source) and c["n_gpus"] <= NODE]
    groups: dict[tuple[int, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for cells in rows:
        if cells["pp"] == 1:
            groups[tuple(int(cells[name]) for name in ("hidden", "tp", "micro_batch", "dp"))].append(cells)
    for (hidden, tp, micro_batch, dp), members in sorted(groups.items()):
        layers = np.array([float(c["layers"]) for c in members])
        count = np.array([float(c["global_batch_seqs"]) / dp / micro_batch for c in members])
        seconds = np.array([float(c["step_s"]) for c in members])
        if len(members) < NODE or len(set(count)) < 2:
            continue
        form = np.stack([count * layers, count, layers, np.ones(len(members))], axis=1) / seconds[:, None]
        found = np.linalg.lstsq(form, np.ones(len(members)), rcond=None)[0]
        worst = np.abs(form @ found - 1.0).max()
        print(
            f"width {hidden}, tp {tp}, micro-batch {micro_batch}, dp {dp}: {len(members)} steps, "
            f"{found[0] * 1e3:.3f} ms a layer and micro-batch, farthest {worst:.1e}"
        )
    cell_of = {str(c["id"]): tuple(int(c[name]) for name in ("hidden", "tp", "micro_batch")) for c in rows}
    scored = [item for item in check_train(path).scored if item.id in cell_of]
    errors: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for item in scored:
        errors[cell_of[item.id]].append(np.log(item.predicted / item.measured))
    factor = {cell: np.exp(-np.median(values)) for cell, values in errors.items()}
    known = [replace(item, predicted=item.predicted * factor[cell_of[item.id]]) for item in scored]
    for title, items in (("as predicted", scored), ("given each cell", known)):
        off = [abs(item.predicted / item.measured - 1.0) for item in items]
        ((_, regret, spearman),) = choice_alike(choices(items)).values()
        print(f"{title}: median error {np.median(off):.1%}, regret {regret:.2%}, Spearman {spearman:.2f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
