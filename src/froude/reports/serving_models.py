"""Several models on one fleet, for people: a table, a page with each model's latencies, a file of requests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.html import Report
from froude.reports.tables import percent, print_table, seconds, si, usd

if TYPE_CHECKING:
    from froude.serving.models_api import SharedResult

_LATENCIES = (
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("e2e_s", "end to end"),
)
_COLUMNS = ("", "completed", *(f"{title}: mean, p99" for _, title in _LATENCIES), "tokens/s", "goodput", "cache peak")


def _title(result: SharedResult) -> str:
    d = result.deployment
    machines = f"{result.machines} x {d.each_devices} x {d.cluster.device.name}"
    return f"{len(result.results)} models on {machines}, {result.sharing}"


def _model_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{own['completed']:,} of {own['requests']:,}",
            *(f"{seconds(own[kind]['mean'])}, {seconds(own[kind]['p99'])}" for kind, _ in _LATENCIES),
            si(own["output_tokens_per_s"]),
            f"{own['goodput_rps']:.3g} requests/s",
            percent(own["peak_kv_utilisation"]),
        )
        for name, own in found["models"].items()
    ]


def _fleet_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    price, energy = found["usd_per_million_output_tokens"], found["joules_per_output_token"]
    rows = [
        ("duration", seconds(found["duration_s"])),
        ("machines busy", percent(found["busy_fraction"])),
        ("cost", "-" if price is None else f"{usd(price)} per million output tokens"),
        ("energy", "-" if energy is None else f"{energy:.3g} J per output token"),
    ]
    if "switches" in found:
        rows.append(("machines changed models", f"{found['switches']:,} times, {seconds(found['loading_s'])} in all"))
    return rows


def show_models(result: SharedResult) -> None:
    """Print each model's latencies, and what they share."""
    found = result.json()
    print_table(_title(result), _COLUMNS, _model_rows(found))
    print_table("", ("", ""), _fleet_rows(found))


def latency_chart(result: SharedResult) -> Any:
    """Share of each model's requests answered within a time."""
    import altair as alt
    import numpy as np
    import polars as pl

    shares = np.linspace(0.0, 1.0, 201)
    curves = [
        pl.DataFrame(
            {"latency": np.quantile(one.latencies.e2e_s, shares), "share": shares, "model": [name] * len(shares)}
        )
        for name, one in result.results.items()
    ]
    return (
        alt.Chart(pl.concat(curves))
        .mark_line()
        .encode(
            alt.X("latency:Q", scale=alt.Scale(type="log", nice=False), title="end to end, seconds"),
            alt.Y("share:Q", axis=alt.Axis(format="%"), title="requests"),
            alt.Color("model:N", title=None),
        )
        .properties(width=620, height=260)
    )


def write_models_report(result: SharedResult, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` and ``requests.csv``; returns the report's path."""
    import io

    import polars as pl

    from froude.core.spec import write_atomically

    out, found = Path(folder), result.json()
    page = Report(f"Serving {_title(result)}", f"{found['requests']:,} requests")
    page.heading("Models").table(_COLUMNS, _model_rows(found))
    page.chart(latency_chart(result), "Share of each model's requests answered within a time.")
    page.heading("Fleet").table(("", ""), _fleet_rows(found))
    page.heading("Assumptions")
    for line in (*result.assumptions, *result.warnings):
        page.text(line, note=True)
    tables = [
        pl.DataFrame(
            {
                "model": [name] * len(one.latencies.request),
                "arrival_s": one.latencies.arrival_s,
                "input_tokens": one.trace.input_tokens[one.latencies.request],
                "output_tokens": one.trace.output_tokens[one.latencies.request],
                "ttft_s": one.latencies.ttft_s,
                "tpot_s": one.latencies.tpot_s,
                "e2e_s": one.latencies.e2e_s,
            }
        )
        for name, one in result.results.items()
    ]
    buffer = io.BytesIO()
    pl.concat(tables).sort("arrival_s").write_csv(buffer)
    write_atomically(out / "requests.csv", buffer.getvalue())
    page.write(out / "report.html")
    return out / "report.html"
