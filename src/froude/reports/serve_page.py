"""A real serving run as one HTML page: tables, latency over time, distributions, predicted beside measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.html import Report
from froude.reports.serve_runs import LATENCIES, check_rows, run_rows
from froude.reports.tables import seconds, si

if TYPE_CHECKING:
    import polars as pl

    from froude.runtime.engine.api import ServeRun
    from froude.runtime.engine.check import RequestsCheck
    from froude.serving.metrics import Latencies

_SERVED, _SIMULATED = "served", "simulated"
_SHARES = 101


def write_run_page(run: ServeRun, check: RequestsCheck | None) -> Path:
    """Write ``report.html`` into the run's folder; returns its path."""
    facts = run.json()
    page = Report(
        f"{facts['completed']} requests served by {run.spec.engine}",
        f"{run.spec.trace}, scheduler {run.spec.scheduler}, {seconds(facts['duration_s'])}, "
        f"{si(facts['output_tokens_per_s'] or 0.0)} output tokens/s, {facts['preemptions']} preemptions",
    )
    page.table(("", "mean", "p50", "p90", "p99"), run_rows(run))
    shown = {_SERVED: run.latencies}
    if check is not None:
        shown = {_SERVED: check.measured, _SIMULATED: check.predicted}
    if len(run.latencies.e2e_s):
        page.heading("Latency over time").chart(_over_time(shown), "Each request by its time of arrival.")
        page.heading("Distributions").chart(_distributions(shown), "Share of requests within a latency.")
    if run.log.iterations:
        page.heading("Load").chart(_load(run), "Sequences decoding and waiting, and cache blocks in use.")
    if check is not None:
        page.heading("Predicted and measured")
        page.table(("", _SIMULATED, _SERVED, "error", "median of single requests"), check_rows(check))
        for line in (*check.assumptions, *check.warnings):
            page.text(line, note=True)
    page.heading("What was asked for").code(run.spec.to_yaml())
    page.write(run.out / "report.html")
    return run.out / "report.html"


def _points(shown: dict[str, Latencies]) -> pl.DataFrame:
    import polars as pl

    frames = []
    for which, latencies in shown.items():
        begun = latencies.arrival_s.min()
        for metric, title in LATENCIES.items():
            values = getattr(latencies, f"{metric}_s")
            columns = {"arrival": latencies.arrival_s - begun, "latency": values, "which": [which] * len(values)}
            frames.append(
                pl.DataFrame({**columns, "kind": [title] * len(values)}).filter(pl.col("latency").is_finite())
            )
    return pl.concat(frames)


def _over_time(shown: dict[str, Latencies]) -> Any:
    import altair as alt

    return (
        alt.Chart(_points(shown))
        .mark_point(size=14, opacity=0.7)
        .encode(
            alt.X("arrival:Q", title="arrival, s"),
            alt.Y("latency:Q", title="s"),
            alt.Color("which:N", title=None),
        )
        .properties(width=620, height=140)
        .facet(row=alt.Row("kind:N", title=None, sort=list(LATENCIES.values())))
        .resolve_scale(y="independent")
    )


def _distributions(shown: dict[str, Latencies]) -> Any:
    import altair as alt
    import numpy as np
    import polars as pl

    shares = np.linspace(0.0, 1.0, _SHARES)
    curves = []
    for (which, kind), rows in _points(shown).group_by(["which", "kind"], maintain_order=True):
        columns = {"latency": np.quantile(rows["latency"].to_numpy(), shares), "share": shares}
        curves.append(pl.DataFrame({**columns, "which": [which] * _SHARES, "kind": [kind] * _SHARES}))
    return (
        alt.Chart(pl.concat(curves))
        .mark_line()
        .encode(
            alt.X("latency:Q", scale=alt.Scale(type="log", nice=False), title="seconds"),
            alt.Y("share:Q", axis=alt.Axis(format="%"), title="requests"),
            alt.Color("kind:N", title=None),
            alt.StrokeDash("which:N", title=None),
        )
        .properties(width=620, height=260)
    )


def _load(run: ServeRun) -> Any:
    import altair as alt
    import polars as pl

    iterations = run.log.iterations
    frame = pl.DataFrame(
        {
            "time": [iteration.start_s for iteration in iterations],
            "decoding": [iteration.decoding for iteration in iterations],
            "waiting": [iteration.waiting for iteration in iterations],
            "cache blocks": [iteration.used_blocks for iteration in iterations],
        }
    )
    step = max(1, len(iterations) // 400)
    return (
        alt.Chart(frame.gather_every(step).unpivot(["decoding", "waiting", "cache blocks"], index="time"))
        .mark_line(interpolate="step-after")
        .encode(alt.X("time:Q", title="seconds"), alt.Y("value:Q", title=None), alt.Color("variable:N", title=None))
        .properties(width=620, height=110)
        .facet(row=alt.Row("variable:N", title=None))
        .resolve_scale(y="independent")
    )
