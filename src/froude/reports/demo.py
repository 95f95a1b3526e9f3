"""The demo for people: the own-machine table first, then everything behind it, as text and as one HTML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.html import Report
from froude.reports.tables import gib, percent, print_table, seconds, si
from froude.reports.training import add_plans, waterfall_chart

if TYPE_CHECKING:
    from froude.planning.demo import Demo

Rows = list[tuple[str, str, str, str]]
COLUMNS = ("on this machine", "predicted", "measured", "error")


def own_machine_rows(demo: Demo) -> Rows:
    """What was predicted and then measured, here."""
    rows: Rows = []
    for run in demo.runs.runs:
        rows.append(
            _row(f"training step, {run['name']}", run["predicted_step_s"], run["measured_step_s"], seconds),
        )
    for run in demo.runs.runs:
        rows.append(_row(f"training memory, {run['name']}", run["predicted_bytes"], run["measured_bytes"], gib))
    serving = demo.serving
    for metric, name in (("ttft", "time to first token"), ("tpot", "time per output token"), ("e2e", "end to end")):
        predicted, measured = (summary[f"{metric}_s"]["mean"] for summary in serving.summaries())
        rows.append(_row(f"serving, mean {name}", predicted, measured, seconds))
    rows.append(_row("serving, output tokens/s", *serving.throughputs, si))
    point, predicted_loss = demo.ladder.next_points[-1], demo.ladder.predicted[-1]
    rows.append(_row(f"loss of the next size ({si(point.params)} parameters)", predicted_loss, point.loss, _loss))
    return rows


def _row(name: str, predicted: float, measured: float, text: Any) -> tuple[str, str, str, str]:
    return name, text(predicted), text(measured), f"{100 * (predicted / measured - 1):+.1f}%"


def _loss(value: float) -> str:
    return f"{value:.3f}"


def show_demo(demo: Demo, report: Path) -> None:
    """Print what was predicted and measured, and the large plan."""
    print_table(f"\n{demo.device.name}, {demo.device.devices_per_node} processes", COLUMNS, own_machine_rows(demo))
    rank = demo.runs.rank_spearman
    print(
        f"\nFour layouts run for real: median error {percent(demo.runs.median_ape)}, worst "
        f"{percent(demo.runs.worst_ape)}, rank correlation {'-' if rank is None else f'{rank:.2f}'}."
    )
    best = demo.large.plans[0]
    p = best.prediction
    print(
        f"{best.plan.model} on {best.plan.cluster}: {p.layout.describe()}: {seconds(p.step_s)} per step, "
        f"{percent(p.mfu)} MFU, {gib(p.peak_bytes)}; {demo.large.evaluated:,} layouts considered in "
        f"{seconds(demo.large.search_s)}."
    )
    print(f"\nAll of it, with pictures: {report}  (took {seconds(demo.seconds)})")


def write_demo_report(demo: Demo, folder: str | os.PathLike[str]) -> Path:
    """Write ``report.html``; returns its path."""
    from froude.training.waterfall import waterfall

    page = Report("Froude on this machine", "Measured, predicted, run for real, compared: everything below ran here.")
    page.table(COLUMNS, own_machine_rows(demo))
    for warning in (*demo.runs.warnings, *demo.serving.warnings):
        page.text(warning, note=True)
    page.heading("1. This machine, measured")
    page.text(
        f"{demo.device.name}: what one of {demo.device.devices_per_node} processes gets while the others work. "
        "The profile is box.yaml and serves as a cluster: --cluster profile:box.yaml:2."
    )
    named = [(name, si(value)) for name, value in demo.device.measured.items() if "@" not in name]
    page.table(("measured", "value"), named)
    page.heading("2. A small GPT, planned for two processes and run")
    page.text(
        "The best layout and the best of three other kinds ran on two local processes through torch.distributed. "
        "Memory is what tensors take on the neediest rank."
    )
    page.table(
        ("layout", "step, predicted", "measured", "memory, predicted", "measured"),
        [
            (
                run["name"],
                seconds(run["predicted_step_s"]),
                seconds(run["measured_step_s"]),
                gib(run["predicted_bytes"]),
                gib(run["measured_bytes"]),
            )
            for run in demo.runs.runs
        ],
    )
    page.chart(_pairs_chart([(r["name"], r["predicted_step_s"], r["measured_step_s"]) for r in demo.runs.runs]))
    page.heading("3. A request trace, served and simulated by the same scheduler")
    page.text(
        f"{len(demo.served.log.requests)} requests on a real engine with paged KV cache; the simulator is driven by an "
        "equal scheduler object and calibrated on a few seconds of iterations. Time is the engine's processor time."
    )
    page.chart(_latency_chart(demo), "End-to-end latency of each request, simulated against real.")
    page.heading("4. A ladder of sizes, and the next rung predicted")
    ladder = demo.ladder
    coefficients = ladder.fit.coefficients
    page.table(
        ("coefficient", "value", "80% interval"),
        [(name, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}") for name, e in coefficients.items()],
    )
    page.text(
        f"The synthetic language has a known entropy of {ladder.entropy:.3f} nats; the fitted irreducible loss is "
        f"{coefficients['E'].value:.3f}."
    )
    page.chart(_ladder_chart(demo), "Points: measured; lines: the law. The largest size was predicted before training.")
    page.heading("5. The same planner, large")
    add_plans(page, demo.large)
    page.chart(waterfall_chart(waterfall(demo.large.plans[0].prediction)), "Where the best layout's step goes.")
    path = Path(folder) / "report.html"
    page.write(path)
    return path


def _pairs_chart(pairs: list[tuple[str, float, float]]) -> Any:
    import altair as alt
    import polars as pl

    order = ["predicted", "measured"]
    rows = [
        {"run": name, "what": what, "seconds": value}
        for name, predicted, measured in pairs
        for what, value in zip(order, (predicted, measured), strict=True)
    ]
    return (
        alt.Chart(pl.DataFrame(rows))
        .mark_bar()
        .encode(
            alt.Y("run:N", title=None),
            alt.YOffset("what:N", sort=order),
            alt.X("seconds:Q", title="seconds per step"),
            alt.Color(
                "what:N", title=None, scale=alt.Scale(range=["#0b5cad", "#9aa4ae"]), sort=["predicted", "measured"]
            ),
        )
        .properties(width=560, height=34 * len(pairs))
    )


def _latency_chart(demo: Demo) -> Any:
    import altair as alt
    import polars as pl

    frame = pl.DataFrame({"simulated": demo.serving.predicted.e2e_s, "real": demo.serving.measured.e2e_s})
    top = float(max(frame["simulated"].max(), frame["real"].max()))  # type: ignore[arg-type,type-var]
    line = alt.Chart(pl.DataFrame({"x": [0.0, top]})).mark_line(color="#9aa4ae").encode(x="x:Q", y="x:Q")
    points = (
        alt.Chart(frame)
        .mark_circle(size=60, color="#0b5cad")
        .encode(alt.X("real:Q", title="real, s"), alt.Y("simulated:Q", title="simulated, s"))
    )
    return (line + points).properties(width=360, height=300)


def _ladder_chart(demo: Demo) -> Any:
    import altair as alt
    import numpy as np
    import polars as pl

    ladder = demo.ladder
    points = [*ladder.points, *ladder.next_points]
    measured = pl.DataFrame({"params": si(p.params), "tokens": p.tokens, "loss": p.loss} for p in points)
    values = {name: estimate.value for name, estimate in ladder.fit.coefficients.items()}
    span = np.geomspace(min(p.tokens for p in points), max(p.tokens for p in points), 30)
    lines = []
    for size in dict.fromkeys(p.params for p in points):
        loss = ladder.fit.law.predict({"params": np.full(30, size), "tokens": span}, values)
        lines += [{"params": si(size), "tokens": t, "loss": value} for t, value in zip(span, loss, strict=True)]
    order = list(dict.fromkeys(si(p.params) for p in points))
    colour = alt.Color("params:N", title="parameters", sort=order)
    x = alt.X("tokens:Q", scale=alt.Scale(type="log"), title="tokens seen")
    y = alt.Y("loss:Q", scale=alt.Scale(zero=False), title="held-out loss, nats")
    return (
        alt.Chart(pl.DataFrame(lines)).mark_line().encode(x, y, colour)
        + alt.Chart(measured).mark_circle(size=55).encode(x, y, colour)
    ).properties(width=560, height=320)
