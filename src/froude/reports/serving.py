"""Serving simulations for people: a table, pictures of latency and load, a timeline for Perfetto."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.html import Report
from froude.reports.tables import console, percent, print_table, seconds, si, usd

if TYPE_CHECKING:
    from froude.serving.result import ServeResult

_GRID = 400  # points of a picture over time
_COLUMNS = ("", "mean", "80% interval", "p50", "p90", "p99")
_LATENCIES = (
    ("ttft_s", "time to first token"),
    ("tpot_s", "time per output token"),
    ("e2e_s", "end to end"),
)


def _latency_rows(result: ServeResult) -> list[tuple[str, ...]]:
    found = result.json()
    return [
        (
            title,
            seconds(found[name]["mean"]),
            f"{seconds(result.intervals[name].low)} - {seconds(result.intervals[name].high)}",
            *(seconds(found[name][column]) for column in ("p50", "p90", "p99")),
        )
        for name, title in _LATENCIES
    ]


def _tier_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, tier in found.get("kv_tiers", {}).items():
        fetched = f", fetched in {seconds(tier['fetch_s'])}" if "fetch_s" in tier else ""
        rows.append((f"  on {name}", f"{percent(tier['hit_rate'])}{fetched}"))
    return rows


def _load_rows(result: ServeResult) -> list[tuple[str, str]]:
    found = result.json()
    price, energy = found["usd_per_million_output_tokens"], found["joules_per_output_token"]
    rate = result.intervals["output_tokens_per_s"]
    slo = ", ".join(f"{name} {seconds(limit)}" for name, limit in result.slo.items())
    rows = [
        ("requests completed", f"{found['completed']:,} of {found['requests']:,}"),
        ("duration", seconds(found["duration_s"])),
        ("output tokens per second", f"{si(found['output_tokens_per_s'])} ({si(rate.low)} - {si(rate.high)})"),
        ("all tokens per second", si(found["total_tokens_per_s"])),
        ("requests per second", f"{found['requests_per_s']:.3g}"),
    ]
    if slo:
        share = found["goodput_rps"] * found["duration_s"] / max(1, found["completed"])
        rows.append(("goodput", f"{found['goodput_rps']:.3g} requests/s within {slo} ({percent(share)})"))
    rows += [
        ("preemptions", f"{found['preemptions']:,}"),
        (
            "cache peak",
            f"{percent(found['peak_kv_utilisation'])} of {si(found['kv_cache_tokens'], 'tokens')} a replica",
        ),
        ("prefix hits", percent(found["prefix_hit_rate"]) if result.deployment.prefix_cache else "-"),
        *_tier_rows(found),
        ("engine busy", percent(found["busy_fraction"])),
        ("cost", "-" if price is None else f"{usd(price)} per million output tokens"),
        ("energy", "-" if energy is None else f"{energy:.3g} J per output token"),
    ]
    if "transfer_s" in found:
        moved, waited = found["transfer_s"], found["transfer_wait_s"]
        parked = f"{percent(found['mean_parked_kv_utilisation'])}, at most {percent(found['parked_kv_utilisation'])}"
        rows += [
            ("transfer of a cache", f"p50 {seconds(moved['p50'])}, p99 {seconds(moved['p99'])}"),
            ("of which waiting for room", f"p50 {seconds(waited['p50'])}, p99 {seconds(waited['p99'])}"),
            ("parked in prefill caches", parked),
        ]
    if "failures" in found:
        rows.append(("replica failures", f"{found['failures']:,}"))
    if "migrations" in found:
        rows.append(("migrations", f"{found['migrations']:,}, each a pause of {seconds(found['mean_pause_s'])}"))
    return rows


def _title(result: ServeResult) -> str:
    d = result.deployment
    first = [] if d.prefill is None else [(d.prefill, d.prefill.replicas)]
    kinds = [*first, (d, d.replicas - sum(count for _, count in first))]
    parts = [f"{count} x {kind.each_devices} x {kind.cluster.device.name}" for kind, count in kinds]
    said = parts[0].removeprefix("1 x ") if d.prefill is None else f"{parts[0]} (prefill) and {parts[1]} (decode)"
    return f"{d.arch.name} on {said}, {d.scheduler.name}"


def show_serve(result: ServeResult) -> None:
    """Print latencies and load."""
    print_table(_title(result), _COLUMNS, _latency_rows(result))
    print_table("", ("", ""), _load_rows(result))
    how = "stepping" if result.stepped else "jumping"
    console().print(
        f"{result.outcome.iterations:,} iterations simulated in {seconds(result.sim_wall_s)} by {how}", style="dim"
    )


# -- pictures -------------------------------------------------------------------------------------------------------


def latency_chart(result: ServeResult) -> Any:
    """Cumulative distributions of the three latencies."""
    import altair as alt
    import numpy as np
    import polars as pl

    frames = []
    shares = np.linspace(0.0, 1.0, 201)
    for name, title in _LATENCIES:
        values = getattr(result.latencies, name)
        values = values[~np.isnan(values)]
        if values.size:
            curve = {"latency": np.quantile(values, shares), "share": shares, "kind": [title] * len(shares)}
            frames.append(pl.DataFrame(curve))
    return (
        alt.Chart(pl.concat(frames))
        .mark_line()
        .encode(
            alt.X("latency:Q", scale=alt.Scale(type="log", nice=False), title="seconds"),
            alt.Y("share:Q", axis=alt.Axis(format="%"), title="requests"),
            alt.Color("kind:N", title=None),
        )
        .properties(width=620, height=260)
    )


def load_chart(result: ServeResult) -> Any:
    """Sequences waiting and decoding, and the cache, over time."""
    import altair as alt
    import numpy as np
    import polars as pl

    grid = np.linspace(0.0, result.duration_s, _GRID)
    workers = result.deployment.workers
    waiting, decoding, used = np.zeros(_GRID), np.zeros(_GRID), np.zeros(_GRID)
    for replica, worker in enumerate(workers):
        own = [s for s in result.outcome.segments if s.replica == replica]
        if not own:
            continue
        starts = np.array([s.start_ps for s in own]) / 1e12
        ends = starts + np.array([s.duration_ps for s in own]) / 1e12
        at = np.searchsorted(starts, grid, side="right") - 1
        busy = (at >= 0) & (grid < ends[at])
        waiting += busy * np.array([s.waiting for s in own])[at]
        decoding += busy * np.array([s.decoding for s in own])[at]
        used += busy * np.array([s.used_blocks for s in own])[at] / worker.total_blocks / len(workers)
    frame = pl.DataFrame({"time": grid, "waiting": waiting, "decoding": decoding, "cache": used})
    counts = (
        alt.Chart(frame.unpivot(["waiting", "decoding"], index="time"))
        .mark_line(interpolate="step-after")
        .encode(alt.X("time:Q", title=None), alt.Y("value:Q", title="sequences"), alt.Color("variable:N", title=None))
        .properties(width=620, height=180)
    )
    cache = (
        alt.Chart(frame)
        .mark_area(interpolate="step-after", opacity=0.5)
        .encode(
            alt.X("time:Q", title="seconds"),
            alt.Y("cache:Q", axis=alt.Axis(format="%"), title="cache in use"),
        )
        .properties(width=620, height=120)
    )
    return alt.vconcat(counts, cache)


def drift_chart(result: ServeResult) -> Any:
    """Median and p99 of the time to the first token, by time of arrival."""
    import altair as alt
    import numpy as np
    import polars as pl

    found = result.latencies
    bins = max(1, min(60, len(found.request) // 20))
    edges = np.linspace(found.arrival_s.min(), found.arrival_s.max() + 1e-9, bins + 1)
    place = np.clip(np.searchsorted(edges, found.arrival_s, side="right") - 1, 0, bins - 1)
    frame = (
        pl.DataFrame({"time": (edges[:-1] + edges[1:])[place] / 2, "ttft": found.ttft_s})
        .group_by("time")
        .agg(pl.col("ttft").median().alias("p50"), pl.col("ttft").quantile(0.99).alias("p99"))
        .sort("time")
        .unpivot(["p50", "p99"], index="time")
    )
    return (
        alt.Chart(frame)
        .mark_line()
        .encode(
            alt.X("time:Q", title="seconds"),
            alt.Y("value:Q", title="time to first token, s"),
            alt.Color("variable:N", title=None),
        )
        .properties(width=620, height=180)
    )


# -- files ----------------------------------------------------------------------------------------------------------


def timeline(result: ServeResult) -> list[dict[str, object]]:
    """Chrome trace events: a bar per segment of iterations, counters for queue and cache."""
    events: list[dict[str, object]] = []
    for replica in range(result.deployment.replicas):
        name = {"name": f"replica {replica}"}
        events.append({"name": "process_name", "ph": "M", "pid": replica, "args": name})
    for s in result.outcome.segments:
        what = "decode" if not s.prefill_tokens else "prefill" if not s.decoding else "mixed"
        start_us, took_us = s.start_ps / 1e6, s.duration_ps / 1e6
        events.append(
            {
                "name": what,
                "cat": what,
                "ph": "X",
                "pid": s.replica,
                "tid": 0,
                "ts": start_us,
                "dur": took_us,
                "args": {
                    "iterations": s.count,
                    "first_us": s.first_ps / 1e6,
                    "decoding": s.decoding,
                    "prefill_tokens": s.prefill_tokens,
                },
            }
        )
        load = {"waiting": s.waiting, "decoding": s.decoding}
        events.append({"name": "sequences", "ph": "C", "pid": s.replica, "ts": start_us, "args": load})
        blocks = {"used": s.used_blocks}
        events.append({"name": "cache blocks", "ph": "C", "pid": s.replica, "ts": start_us, "args": blocks})
    return events


def write_serve_report(result: ServeResult, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html``, ``trace.json`` (Perfetto) and ``requests.csv``; returns the report's path.

    The result must have been simulated with ``record``.
    """
    import io

    import polars as pl

    from froude.core.spec import write_atomically
    from froude.program.trace import write_trace

    out = Path(folder)
    page = Report(f"Serving {_title(result)}", f"{len(result.trace):,} requests of {result.trace.name}")
    page.heading("Latency").table(_COLUMNS, _latency_rows(result))
    page.chart(latency_chart(result), "Share of requests within a latency.")
    page.chart(drift_chart(result), "Time to first token by time of arrival.")
    page.heading("Load").table(("", ""), _load_rows(result))
    page.chart(load_chart(result), "Sequences waiting and decoding, and the cache in use, over time.")
    page.heading("Assumptions")
    for line in (*result.assumptions, *result.warnings):
        page.text(line, note=True)
    found = result.latencies
    buffer = io.BytesIO()
    pl.DataFrame(
        {
            "request": found.request,
            "arrival_s": found.arrival_s,
            "input_tokens": result.trace.input_tokens[found.request],
            "output_tokens": result.trace.output_tokens[found.request],
            "ttft_s": found.ttft_s,
            "tpot_s": found.tpot_s,
            "e2e_s": found.e2e_s,
            "preemptions": [result.outcome.preemptions[i] for i in found.request],
        }
    ).write_csv(buffer)
    write_atomically(out / "requests.csv", buffer.getvalue())
    write_trace(out / "trace.json", timeline(result))
    page.write(out / "report.html")
    return out / "report.html"
