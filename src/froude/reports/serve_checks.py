"""Predictions against measured serving runs, for people."""

from __future__ import annotations

from collections import Counter

from froude.reports.tables import console, percent, print_table
from froude.serving.scores import Score, ServeCheck

_NAMES = {"ttft_ms": "first token", "tpot_ms": "per token", "e2e_ms": "end to end", "output_tokens_per_s": "throughput"}


def show_serve_check(check: ServeCheck) -> None:
    """Median error and bias by cell, the equal-weight average, and what was skipped."""
    rows = [[cell.replace("|", "  "), *_cells(scores)] for cell, scores in check.by_cell().items()]
    rows.append(["cells weighted equally", *_cells(check.by_metric())])
    print_table("Serving: median error (bias)", ["model, device, engine", *_NAMES.values()], rows)
    held = ", ".join(f"{_NAMES[name]} {percent(score.coverage)}" for name, score in check.by_metric().items())
    console().print(f"inside their 80% intervals: {held}")
    console().print(f"{len(check.skipped)} of {check.rows} rows skipped")
    for reason, count in Counter(item.reason for item in check.skipped).most_common(12):
        console().print(f"  {count:4d}  {reason}", soft_wrap=True)


def _cells(scores: dict[str, Score]) -> list[str]:
    return [_cell(scores[metric]) if metric in scores else "" for metric in _NAMES]


def _cell(score: Score) -> str:
    sign = "+" if score.bias > 0 else ""
    return f"{percent(score.median_ape)} ({sign}{percent(score.bias)}), {score.n}"
