"""A comparison for people: both sides, the difference by mechanism, a report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.html import Report
from froude.reports.tables import gib, percent, print_table, seconds, usd
from froude.reports.training import waterfall_chart

if TYPE_CHECKING:
    from froude.planning.compare import Comparison, Side

_COLUMNS = ("", "baseline", "changed", "difference")


def show_comparison(found: Comparison) -> None:
    """Print both predictions, the difference and where it comes from."""
    print_table(_title(found), _COLUMNS, _summary(found))
    gain = found.gain
    print(f"\ngain {gain.value:.3f}x ({gain.low:.3f}x to {gain.high:.3f}x)\n")
    stage = found.baseline.waterfall.stage
    print_table(f"where the difference comes from (stage {stage})", _COLUMNS, _time_rows(found))
    print()
    print_table("memory of the neediest stage", _COLUMNS, _memory_rows(found))


def write_comparison_report(found: Comparison, folder: str | os.PathLike[str], command: str) -> Path:
    """Write ``report.html``; returns its path."""
    page = Report(_title(found), command)
    gain = found.gain
    page.text(f"Gain {gain.value:.3f}x ({gain.low:.3f}x to {gain.high:.3f}x).")
    page.heading("Both sides").table(_COLUMNS, _summary(found))
    page.heading("Where the difference comes from").chart(
        difference_chart(found), "Seconds per step, from left to right."
    )
    page.table(_COLUMNS, _time_rows(found))
    page.heading("Memory of the neediest stage").table(_COLUMNS, _memory_rows(found))
    page.heading("Baseline step").chart(waterfall_chart(found.baseline.waterfall))
    page.heading("Changed step").chart(waterfall_chart(found.changed.waterfall))
    page.heading("The changed plan").code(found.changed.planned.plan.to_yaml())
    page.heading("Assumptions")
    for line in (*found.assumptions, *found.warnings):
        page.text(line, note=True)
    path = Path(folder) / "report.html"
    page.write(path)
    return path


def difference_chart(found: Comparison) -> Any:
    """From the baseline's step to the changed one, part by part."""
    import altair as alt
    import polars as pl

    before, after = found.baseline.step_s, found.changed.step_s
    rows: list[dict[str, Any]] = [
        {"part": "baseline", "from": 0.0, "to": before, "label": seconds(before), "kind": "step"}
    ]
    reached = before
    for name, change in found.difference_s.items():
        if abs(change) > 1e-4 * before:
            kind = "slower" if change > 0 else "faster"
            rows.append({"part": name, "from": reached, "to": reached + change, "label": _signed(change), "kind": kind})
        reached += change
    rows.append({"part": "changed", "from": 0.0, "to": after, "label": seconds(after), "kind": "step"})
    order = [row["part"] for row in rows]
    colours = alt.Scale(domain=["step", "faster", "slower"], range=["#57606a", "#1a7f37", "#cf222e"])
    base = alt.Chart(pl.DataFrame(rows)).encode(alt.Y("part:N", sort=order, title=None))
    bars = base.mark_bar().encode(
        alt.X("from:Q", title="seconds"), alt.X2("to:Q"), alt.Color("kind:N", scale=colours, legend=None)
    )
    text = base.transform_calculate(edge="max(datum.from, datum.to)").mark_text(align="left", dx=4)
    return (bars + text.encode(alt.X("edge:Q"), text="label:N")).properties(width=620, height=24 * len(rows))


def _title(found: Comparison) -> str:
    plan = found.baseline.planned.plan
    names = " + ".join(use.name for use in found.techniques)
    return f"{names} for {plan.model} on {plan.cluster} ({plan.layout.describe()})"


def _summary(found: Comparison) -> list[tuple[str, ...]]:
    before, after = found.baseline, found.changed
    p, q = before.planned.prediction, after.planned.prediction
    rows = [
        ("step", seconds(p.step_s), seconds(q.step_s), _relative(p.step_s, q.step_s)),
        ("MFU", percent(p.mfu), percent(q.mfu), _relative(p.mfu, q.mfu)),
        (
            "tokens/s/GPU",
            f"{p.tokens_per_s_per_device:,.0f}",
            f"{q.tokens_per_s_per_device:,.0f}",
            _relative(p.tokens_per_s_per_device, q.tokens_per_s_per_device),
        ),
        ("peak memory", gib(p.peak_bytes), gib(q.peak_bytes), _relative(p.peak_bytes, q.peak_bytes)),
        ("fits with probability", percent(p.p_fit, 0), percent(q.p_fit, 0), ""),
    ]
    return [*rows, *_totals(before, after)]


def _totals(before: Side, after: Side) -> list[tuple[str, ...]]:
    first, second = before.planned.outcome, after.planned.outcome
    if first is None or second is None:
        return []
    days, other = first.days.value, second.days.value
    rows = [("days", f"{days:.1f}", f"{other:.1f}", _relative(days, other))]
    if first.usd is not None and second.usd is not None:
        rows.append(("USD", usd(first.usd.value), usd(second.usd.value), _relative(first.usd.value, second.usd.value)))
    mwh, less = first.kwh.value / 1e3, second.kwh.value / 1e3
    return [*rows, ("MWh", f"{mwh:,.1f}", f"{less:,.1f}", _relative(mwh, less))]


def _time_rows(found: Comparison) -> list[tuple[str, ...]]:
    before, after = found.baseline.waterfall.seconds, found.changed.waterfall.seconds
    first, second = found.baseline.step_s, found.changed.step_s
    rows = [
        (name, seconds(before.get(name, 0.0)), seconds(after.get(name, 0.0)), _signed(change))
        for name, change in found.difference_s.items()
        if max(before.get(name, 0.0), after.get(name, 0.0)) > 1e-6 * first
    ]
    return [*rows, ("step", seconds(first), seconds(second), _signed(second - first))]


def _memory_rows(found: Comparison) -> list[tuple[str, ...]]:
    before, after = found.baseline.memory_bytes, found.changed.memory_bytes
    return [
        (name, gib(before.get(name, 0.0)), gib(after.get(name, 0.0)), ("+" if change > 0 else "") + gib(change))
        for name, change in found.difference_bytes.items()
    ]


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + seconds(value)


def _relative(before: float, after: float) -> str:
    change = after / before - 1.0
    return ("+" if change > 0 else "") + percent(change)
