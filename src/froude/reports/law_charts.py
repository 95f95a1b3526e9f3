"""Pictures of laws and budgets: fit and residuals, isoFLOP curves, loss surface, allocation, time to a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from froude.laws.fitted import FittedLaw
    from froude.laws.fitting import Fit
    from froude.planning.budget import BudgetPlan

MAX_POINTS = 4000  # drawn; more only makes the file large
BLUE, RED, GREY, DARK = "#2b6cb0", "#c53030", "#718096", "#1a202c"
WIDE, HIGH = 460, 340
TEN = "'10^' + format(log(datum.value) / log(10), '.0f')"


def save_chart(chart: Any, stem: Path) -> list[Path]:
    """Write ``stem.html``, ``stem.png`` and ``stem.svg``."""
    from io import BytesIO, StringIO

    from froude.core.spec import write_atomically

    page, picture, drawing = StringIO(), BytesIO(), StringIO()
    chart.save(page, format="html", inline=True)
    chart.save(picture, format="png", scale_factor=2)
    chart.save(drawing, format="svg")
    files = [stem.with_suffix(suffix) for suffix in (".html", ".png", ".svg")]
    write_atomically(files[0], page.getvalue())
    write_atomically(files[1], picture.getvalue())
    write_atomically(files[2], drawing.getvalue())
    return files


def fit_chart(result: Fit) -> Any:
    """Measured against predicted, and the residuals along compute or the law's first input."""
    import altair as alt
    import numpy as np
    import polars as pl

    law, data = result.law, result.table
    axis = "flops" if "flops" in data else law.columns()[0]
    keep = np.linspace(0, result.n - 1, min(result.n, MAX_POINTS)).astype(int)
    observed = data[law.target]
    outliers = {int(o["row"]) for o in result.outliers}
    positive = law.residual == "log"
    residual = observed / result.predicted - 1.0 if positive else observed - result.predicted
    frame = pl.DataFrame(
        {
            "row": data["row"][keep].astype(int),
            "measured": observed[keep],
            "predicted": result.predicted[keep],
            "residual": residual[keep],
            axis: data[axis][keep],
            "kind": ["outlier" if int(row) in outliers else "run" for row in data["row"][keep]],
        }
    )
    colour = alt.Color("kind:N", scale=alt.Scale(domain=["run", "outlier"], range=[BLUE, RED]), title=None)
    tips = ["row", "measured", "predicted", "residual", axis]
    scale = alt.Scale(type="log" if positive else "linear", zero=False, nice=False, padding=10)
    points = (
        alt.Chart(frame)
        .mark_circle(size=35, opacity=0.75)
        .encode(
            alt.X("predicted:Q", scale=scale, title=f"predicted {law.target}"),
            alt.Y("measured:Q", scale=scale, title=f"measured {law.target}"),
            colour,
            tooltip=tips,
        )
    )
    ends = pl.DataFrame({"predicted": [observed.min(), observed.max()], "measured": [observed.min(), observed.max()]})
    line = alt.Chart(ends).mark_line(color=GREY, strokeDash=[4, 3]).encode(x="predicted:Q", y="measured:Q")
    along = _tens(axis) if float(data[axis].min()) > 0 else alt.X(f"{axis}:Q", title=axis)
    residuals = (
        alt.Chart(frame)
        .mark_circle(size=35, opacity=0.75)
        .encode(
            along,
            alt.Y(
                "residual:Q",
                title="measured over predicted, less one" if positive else "measured less predicted",
                axis=alt.Axis(format=".1%") if positive else alt.Axis(),
            ),
            colour,
            tooltip=tips,
        )
    )
    zero = alt.Chart(pl.DataFrame({"residual": [0.0]})).mark_rule(color=GREY, strokeDash=[4, 3]).encode(y="residual")
    size = {"width": 380, "height": 320}
    pair = alt.hconcat((line + points).properties(**size), (zero + residuals).properties(**size))
    return pair.properties(title=f"{law.name}: {law.form}")


def iso_flop_chart(law: FittedLaw, budgets: Any, runs: Any = None, unique_tokens: float | None = None) -> Any:
    """Loss against size at fixed compute, the frontier through the minima, and the runs it was fitted to."""
    import altair as alt
    import polars as pl

    from froude.laws.curves import iso_flop

    curves, minima = iso_flop(law, budgets, unique_tokens)
    x = _tens("params", "parameters")
    worst = max(point["loss"] for point in minima) * 1.15
    shown = pl.DataFrame([row for row in curves if row["loss"] <= worst])
    y = alt.Y("loss:Q", scale=alt.Scale(type="log", zero=False, nice=False, padding=8), title="loss")
    colour = alt.Color(
        "flops:Q",
        scale=alt.Scale(type="log", scheme="viridis"),
        title="FLOPs",
        legend=alt.Legend(labelExpr=TEN, tickCount=4, type="gradient"),
    )
    lines = alt.Chart(shown).mark_line(strokeWidth=1.8).encode(x, y, colour, detail="flops:N")
    ridge = pl.DataFrame(list(minima))
    frontier = alt.Chart(ridge).mark_line(color=RED, strokeDash=[5, 3]).encode(x=x, y=y, order="flops:Q")
    dots = alt.Chart(ridge).mark_point(color=RED, filled=True, size=55).encode(x, y, tooltip=list(ridge.columns))
    layers = lines + frontier + dots
    if runs is not None:
        near = pl.DataFrame(runs).filter((pl.col("loss") <= worst) & (pl.col("params") >= shown["params"].min()))
        near = near.filter(pl.col("params") <= shown["params"].max())
        near = near.sample(min(MAX_POINTS, near.height), seed=0)
        layers += alt.Chart(near).mark_circle(size=22, opacity=0.55).encode(x, y, colour, tooltip=list(near.columns))
    title = f"{law.law.name}: loss at fixed compute; red, the best size for each"
    return layers.properties(width=WIDE, height=HIGH, title=title)


def surface_chart(
    law: FittedLaw,
    params: tuple[float, float],
    tokens: tuple[float, float],
    runs: Any = None,
    here: Any = None,
    unique_tokens: float | None = None,
) -> Any:
    """Loss over parameters and tokens, with the compute-optimal path, the runs and the choice made."""
    import altair as alt
    import numpy as np
    import polars as pl

    from froude.laws.curves import contours, iso_flop

    x = _tens("params", "parameters", params)
    y = _tens("tokens", "tokens", tokens, alt.Y)
    lines = [(level, line) for level, line in contours(law, params, tokens, unique_tokens) if len(line) > 1]
    named = [f"below {level:.3g}" for level, _ in lines]
    colour = alt.Color("loss:N", sort=named, scale=alt.Scale(domain=named, range=_greens(len(named))), title="loss")
    layers: Any = alt.layer()
    for name, (_, line) in zip(named, lines, strict=True):
        area = pl.DataFrame([{**point, "top": tokens[1], "loss": name} for point in line])
        layers += alt.Chart(area).mark_area(opacity=1.0, clip=True).encode(x, y, colour, y2="top")
    lowest, highest = 6.0 * params[0] * tokens[0], 6.0 * params[1] * tokens[1]
    _, minima = iso_flop(law, np.geomspace(lowest, highest, 41).tolist(), unique_tokens)
    inside = [m for m in minima if params[0] <= m["params"] <= params[1] and tokens[0] <= m["tokens"] <= tokens[1]]
    if inside:
        layers += (
            alt.Chart(pl.DataFrame(inside))
            .mark_line(color="white", strokeWidth=2.2, strokeDash=[6, 4], clip=True)
            .encode(x, y, order="flops:Q")
        )
    if runs is not None:
        points = pl.DataFrame(runs)
        points = points.sample(min(MAX_POINTS, points.height), seed=0)
        layers += (
            alt.Chart(points)
            .mark_point(size=16, filled=True, color="white", stroke=DARK, strokeWidth=0.5, opacity=0.8)
            .encode(x, y, tooltip=list(points.columns))
        )
    if here is not None:
        layers += (
            alt.Chart(pl.DataFrame([here]))
            .mark_point(shape="diamond", size=150, filled=True, color=RED, stroke="white")
            .encode(x, y, tooltip=["params", "tokens"])
        )
    title = f"{law.law.name}: loss by size and data; dashed, the best split of compute"
    return layers.properties(width=WIDE, height=HIGH, title=title)


def allocation_chart(plan: BudgetPlan) -> Any:
    """Compute-optimal parameters and tokens around the budget."""
    import altair as alt
    import polars as pl

    frame = pl.DataFrame(
        [
            {"flops": flops, "what": what, "value": value}
            for flops, params, tokens in plan.frontier
            for what, value in (("parameters", params), ("tokens", tokens))
        ]
    )
    x = _tens("flops", "budget, FLOPs")
    y = _tens("value", "parameters, tokens", None, alt.Y)
    colour = alt.Color("what:N", title=None, scale=alt.Scale(domain=["tokens", "parameters"], range=[BLUE, "#dd6b20"]))
    lines = alt.Chart(frame).mark_line(strokeWidth=2).encode(x, y, colour)
    here = pl.DataFrame(
        [
            {"flops": plan.flops.value, "what": what, "value": e.value, "low": e.low, "high": e.high, "said": said}
            for what, e, said in (
                ("parameters", plan.params, _people(plan.params.value)),
                ("tokens", plan.tokens, _people(plan.tokens.value)),
            )
        ]
    )
    base = alt.Chart(here).encode(x, colour)
    bars = base.mark_rule(strokeWidth=2.5).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    dots = base.mark_point(filled=True, size=90).encode(y, tooltip=["what", "value", "low", "high"])
    words = base.mark_text(align="left", dx=10, dy=12, fontWeight="bold").encode(y, text="said")
    title = f"Best split of compute by {plan.law}, with the 80% interval here"
    return (lines + bars + dots + words).properties(width=WIDE, height=HIGH, title=title)


def batch_chart(plan: BudgetPlan) -> Any:
    """Days to the same loss against batch, for each number of devices; the fastest of each, and the knee."""
    import altair as alt
    import polars as pl

    from froude.planning.knee import fastest

    points = plan.target_points
    frame = pl.DataFrame([{**point.json(), "devices": str(point.devices)} for point in points])
    order = [str(n) for n in sorted({point.devices for point in points})]
    x = _tens("batch_tokens", "batch, tokens")
    y = alt.Y("days:Q", scale=alt.Scale(type="log", nice=False, padding=10), title="days to the same loss")
    colour = alt.Color("devices:N", sort=order, scale=alt.Scale(scheme="tableau10"), title="devices")
    tips = ["devices", "batch_tokens", "step_s", "tokens", "days", "device_days"]
    curves = alt.Chart(frame).mark_line(point=alt.OverlayMarkDef(size=28)).encode(x, y, colour, tooltip=tips)
    best = pl.DataFrame([{**point.json(), "devices": str(point.devices)} for point in fastest(points)])
    rings = alt.Chart(best).mark_point(size=110, strokeWidth=2).encode(x, y, colour, tooltip=tips)
    mark = pl.DataFrame({"batch_tokens": [plan.critical_batch_tokens.value], "said": ["critical batch"]})
    rule = alt.Chart(mark).mark_rule(color=GREY, strokeDash=[4, 3]).encode(x)
    name = alt.Chart(mark).mark_text(align="left", dx=5, color=GREY).encode(x, y=alt.value(8), text="said")
    layers = rule + name + curves + rings
    turn = plan.knee
    if turn is not None:
        words = f"knee: {turn.devices} devices, {turn.days:.3g} days"
        at = pl.DataFrame([{**turn.json(), "said": words}])
        layers += alt.Chart(at).mark_point(shape="diamond", size=170, filled=True, color=RED).encode(x, y)
        layers += (
            alt.Chart(at).mark_text(align="left", dx=12, dy=16, color=RED, fontWeight="bold").encode(x, y, text="said")
        )
    title = f"Time to target by batch, on {plan.cluster} and on more or fewer devices"
    return layers.properties(width=WIDE, height=HIGH, title=title)


def _tens(name: str, title: str | None = None, domain: tuple[float, float] | None = None, channel: Any = None) -> Any:
    """A logarithmic axis labelled by powers of ten."""
    import altair as alt

    scale = alt.Scale(type="log", nice=False, padding=8) if domain is None else alt.Scale(type="log", domain=domain)
    return (channel or alt.X)(
        f"{name}:Q", scale=scale, title=title or name, axis=alt.Axis(labelExpr=_power_of_ten(), tickCount=6, grid=False)
    )


def _power_of_ten() -> str:
    """1, 2 and 5 times a power of ten are labelled; other ticks are not."""
    exponent = "floor(log(datum.value) / LN10 + 1e-9)"
    lead = f"round(datum.value / pow(10, {exponent}))"
    return f"indexof([1, 2, 5], {lead}) >= 0 ? {lead} + 'e' + {exponent} : ''"


def _greens(count: int) -> list[str]:
    """From dark blue to yellow, as perceived evenly: points of viridis, interpolated."""
    import numpy as np

    ends = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
    at = np.linspace(0, len(ends) - 1, count)
    mixed = [[np.interp(place, range(len(ends)), ends[:, c]) for c in range(3)] for place in at]
    return [f"#{round(r):02x}{round(g):02x}{round(b):02x}" for r, g, b in mixed]


def _people(value: float) -> str:
    from froude.reports.tables import si

    return si(value)
