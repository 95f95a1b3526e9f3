"""Predictions against measurements, for people."""

from __future__ import annotations

import math
from collections import Counter

from froude.core.measurements import Skipped
from froude.planning.calibration_check import CalibrationCheck
from froude.reports.tables import console, percent, print_table, seconds
from froude.timing.kernel_check import SHORTEST_S, KernelCheck
from froude.timing.kernel_tables import KINDS
from froude.training.choice import MIN_LAYOUTS, choice_alike
from froude.training.measured import OutOfMemoryCheck
from froude.training.scores import MIN_ROWS, Check, Scores


def show_check(title: str, check: Check) -> None:
    """Errors by source, their equal-weight average, and what was skipped."""
    kinds = check.kinds()
    rows = []
    for kind in kinds:
        named = f", {kind}" if len(kinds) > 1 else ""
        rows += [
            [f"{source}{named}", *_cells(scores), _optional(check.coverage(source, kind))]
            for source, scores in check.by_source(kind).items()
        ]
    rows.append(["all rows", *_cells(check.overall()), _optional(check.coverage())])
    for kind in kinds:
        median, p90 = check.sources_alike(kind)
        rows.append([f"{kind}: sources of {MIN_ROWS} rows or more, alike", "", percent(median), percent(p90), "", ""])
    print_table(title, ["source", "rows", "median error", "90th percentile", "bias", "in 80% interval"], rows)
    _show_choices(check)
    stated, completed = check.stated(), check.completed()
    console().print(
        f"{stated.n} rows state every setting: median error {_signed(stated.median_ape)}; "
        f"{completed.n} were completed from source_defaults.toml: {_signed(completed.median_ape)}"
    )
    _show_skipped(check.rows, check.skipped)
    if check.unusable:
        console().print(f"{check.unusable} of those the table marks unusable; {check.rows - check.unusable} are usable")


def show_calibration_check(check: CalibrationCheck) -> None:
    """Errors of the rest of each source, before and after learning from a few of its runs."""
    rows = [
        [item.source, item.kind, str(item.n), percent(item.before), percent(item.after), percent(item.helped, 0)]
        for item in check.sources
    ]
    for kind in check.kinds:
        before, after = check.alike(kind)
        rows.append(["sources alike", kind, "", percent(before), percent(after), ""])
    title = f"Median error of the rest of a source, after learning from {check.runs} of its runs (median over draws)"
    print_table(title, ["source", "kind", "rows", "before", "after", "draws that helped"], rows, left=2)


def show_kernels(check: KernelCheck) -> None:
    """Errors by device and kind of kernel."""
    rows = [
        [e.kind, e.device, str(e.n), percent(e.median), percent(e.p90), _signed(e.bias, plus=True)]
        for e in sorted(check.errors, key=lambda e: [kind.name for kind in KINDS].index(e.kind))
    ]
    title = f"Kernels of {seconds(SHORTEST_S)} and more, shapes left out of every fit"
    print_table(title, ["kernel", "device", "shapes", "median error", "90th percentile", "bias"], rows, left=2)


def _show_choices(check: Check) -> None:
    """Regret and rank correlation of the sweeps over layouts, by source and with sources alike."""
    found = choice_alike(check.choices())
    if not found:
        return
    rows = [[source, str(n), percent(regret), f"{rank:.2f}"] for source, (n, regret, rank) in found.items()]
    regrets, ranks = ([item[i] for item in found.values()] for i in (1, 2))
    rows.append(["sources alike", "", percent(sum(regrets) / len(regrets)), f"{sum(ranks) / len(ranks):.2f}"])
    title = f"Choice: the layout ranked first against the best measured, sweeps of {MIN_LAYOUTS} layouts or more"
    print_table(title, ["source", "sweeps", "mean regret", "mean Spearman"], rows)


def show_oom(check: OutOfMemoryCheck) -> None:
    """How often runs that failed and runs that fitted are told apart."""
    data = check.json()
    rows = [
        [source, str(row["failed"]), str(row["ran"]), _optional(row["balanced_accuracy"])]
        for source, row in data["by_source"].items()
    ]
    rows.append(["all rows", "", "", _optional(data["balanced_accuracy"])])
    print_table("Out of memory", ["source", "failed", "ran", "balanced accuracy"], rows)
    bins = [[f"{b['from']:.1f} to {b['to']:.1f}", str(b["n"]), percent(b["fitted"], 0)] for b in data["calibration"]]
    print_table("Predicted probability of fit", ["probability", "runs", "fitted"], bins)
    _show_skipped(check.rows, check.skipped)


def _show_skipped(rows: int, skipped: tuple[Skipped, ...]) -> None:
    console().print(f"{len(skipped)} of {rows} rows skipped")
    for reason, count in Counter(item.reason for item in skipped).most_common(12):
        console().print(f"  {count:4d}  {reason}", soft_wrap=True)


def _cells(scores: Scores) -> list[str]:
    return [str(scores.n), percent(scores.median_ape), percent(scores.p90_ape), _signed(scores.bias, plus=True)]


def _signed(value: float, *, plus: bool = False) -> str:
    text = percent(value)
    return f"+{text}" if plus and math.isfinite(value) and value > 0 else text


def _optional(value: float | None) -> str:
    return "-" if value is None else percent(value)
