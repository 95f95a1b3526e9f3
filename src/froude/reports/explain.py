"""An explanation for people: where the step goes, what helps, why not another layout, what a gap means."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from froude.reports.html import Report
from froude.reports.tables import gib, percent, print_table, seconds
from froude.reports.training import show_waterfall, waterfall_chart

if TYPE_CHECKING:
    from froude.planning.calibrate import Calibrated, Learned
    from froude.planning.explain import Explanation, Other
    from froude.planning.suspects import Suspect

_CHANGES = ("change", "because of", "step", "gain", "memory", "fits")
_SUSPECTS = ("suspect", "needed", "how to check", "sigmas", "step", "weight")
MOST_SUSPECTS = 8
NOTHING_HELPS = "No single change of the layout that fits, and no technique, would help."


def show_explanation(found: Explanation) -> None:
    """Print the waterfall, the changes, the others and the suspects."""
    print(_title(found) + "\n")
    show_waterfall(found.waterfall)
    print()
    if found.changes:
        print_table("what would help most", _CHANGES, _change_rows(found), left=2)
    else:
        print(NOTHING_HELPS)
    print()
    title = "why not another layout (none looked at is faster)" if found.best else "why not another layout"
    print_table(title, _other_columns(found), _other_rows(found))
    if found.measured_step_s is not None:
        print()
        print_table(_gap(found), _SUSPECTS, _suspect_rows(found), left=3)


def write_explanation_report(found: Explanation, folder: str | os.PathLike[str], command: str) -> Path:
    """Write ``report.html``; returns its path."""
    page = Report(_title(found), command)
    page.heading("Where the step goes").chart(waterfall_chart(found.waterfall))
    page.heading("What would help most")
    if found.changes:
        page.table(_CHANGES, _change_rows(found), left=2)
    else:
        page.text(NOTHING_HELPS)
    page.heading("Why not another layout").table(_other_columns(found), _other_rows(found))
    if found.measured_step_s is not None:
        page.heading("What explains the measured step").text(_gap(found)).table(_SUSPECTS, _suspect_rows(found), left=3)
    page.heading("Assumptions")
    for line in (*found.assumptions, *found.warnings):
        page.text(line, note=True)
    path = Path(folder) / "report.html"
    page.write(path)
    return path


def _title(found: Explanation) -> str:
    plan = found.planned.plan
    return f"{plan.model} on {plan.cluster} ({plan.layout.describe()})"


def _gap(found: Explanation) -> str:
    assert found.measured_step_s is not None
    off = found.measured_step_s / found.step_s - 1.0
    return (
        f"measured {seconds(found.measured_step_s)}, predicted {seconds(found.step_s)} "
        f"({'+' if off > 0 else ''}{percent(off)}): likeliest causes, one at a time"
    )


def _change_rows(found: Explanation) -> list[tuple[str, ...]]:
    return [
        (c.what, _reasons(c), seconds(c.step_s), f"{c.gain:.3f}x", gib(c.peak_bytes), percent(c.p_fit, 0))
        for c in found.changes
    ]


def _reasons(other: Other) -> str:
    return ", ".join(f"{name} {_signed(change)}" for name, change in other.reasons)


def _other_columns(found: Explanation) -> tuple[str, ...]:
    return ("", "this plan", *(other.what for other in found.others))


def _other_rows(found: Explanation) -> list[tuple[str, ...]]:
    """One column per layout: what it is, its totals, and the difference by part."""
    plan, others = found.planned, found.others
    step_s, p = found.step_s, found.planned.prediction
    parts = dict.fromkeys([*found.waterfall.seconds, *(name for other in others for name in other.difference_s)])
    rows: list[tuple[str, ...]] = [
        ("layout", plan.plan.layout.describe(), *(_layout(other) for other in others)),
        ("step", seconds(step_s), *(seconds(other.step_s) for other in others)),
        ("slower (faster: negative)", "", *(percent(other.step_s / step_s - 1.0) for other in others)),
        ("memory", gib(p.peak_bytes), *("-" if other.plan is None else gib(other.peak_bytes) for other in others)),
        ("fits", percent(p.p_fit, 0), *("-" if other.plan is None else percent(other.p_fit, 0) for other in others)),
    ]
    for name in parts:
        changes = [other.difference_s.get(name, 0.0) for other in others]
        own = found.waterfall.seconds.get(name, 0.0)
        if max([own, *(abs(change) for change in changes)]) > 5e-4 * step_s:
            shown = ("-" if other.plan is None else _signed(c) for other, c in zip(others, changes, strict=True))
            rows.append((name, seconds(_clean(own)), *shown))
    return rows


def _layout(other: Other) -> str:
    return other.why_not if other.plan is None else other.plan.layout.describe()


def _suspect_rows(found: Explanation) -> list[tuple[str, ...]]:
    return [
        (
            _suspect_name(s),
            s.needed if isinstance(s.needed, str) else f"{s.needed:.3g} (not {s.assumed:.3g})",
            s.check,
            f"{s.sigmas:.1f}",
            seconds(s.predicted_step_s),
            percent(s.plausibility),
        )
        for s in found.suspects[:MOST_SUSPECTS]
    ]


def _suspect_name(suspect: Suspect) -> str:
    return f"{suspect.name} ({suspect.constant})" if suspect.constant else suspect.name


def _clean(value: float) -> float:
    """Without what rounding leaves of a difference of equal times."""
    return 0.0 if abs(value) < 1e-9 else value


def _signed(value: float) -> str:
    value = _clean(value)
    return ("+" if value > 0 else "") + seconds(value)


def _figures(item: Learned) -> tuple[str, str, str]:
    return f"{item.parameter.before:.3g}", f"{item.value:.3g}", f"x{math.exp(item.spread):.2f}"


def show_calibration(found: Calibrated) -> None:
    """Print the constants learned, the errors before and after, and the runs."""
    rows = [(item.parameter.name, item.parameter.meaning, *_figures(item)) for item in found.learned]
    print_table("constants learned", ("constant", "meaning", "ships with", "learned", "uncertain by"), rows, left=2)
    print()
    held_out = found.held_out
    scores = [("constants that ship", found.before)]
    if held_out is not None:
        scores.append(("learned from the other runs", held_out))
    print_table(
        f"error of {len(found.runs)} runs, each left out in turn",
        ("", "median", "p90", "bias"),
        [(name, percent(s.median_ape), percent(s.p90_ape), percent(s.bias)) for name, s in scores],
    )
    print()
    held = [None] * len(found.runs) if found.held_out_s is None else found.held_out_s.tolist()
    print_table(
        "",
        ("run", "measured", "before", "left out"),
        [
            (run.name, seconds(run.step_s), seconds(before), "-" if other is None else seconds(other))
            for run, before, other in zip(found.runs, found.before_s.tolist(), held, strict=True)
        ],
    )
    for item in found.skipped:
        print(f"skipped {item.id}: {item.reason}")
