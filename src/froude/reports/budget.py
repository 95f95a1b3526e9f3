"""A budget's plan for people: the choices, and pictures of allocation and of time against batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.laws import number, save_chart, span
from froude.reports.tables import print_table, si, usd

if TYPE_CHECKING:
    from froude.planning.budget import BudgetPlan


def show_budget(plan: BudgetPlan) -> None:
    """Print what the budget buys."""
    rows = [
        ("parameters", si(plan.params.value), f"{si(plan.params.low)} to {si(plan.params.high)}"),
        ("tokens", si(plan.tokens.value), f"{si(plan.tokens.low)} to {si(plan.tokens.high)}"),
        ("epochs", number(plan.epochs.value), span(plan.epochs)),
        ("batch, tokens", si(plan.batch_tokens.value), f"{si(plan.batch_tokens.low)} to {si(plan.batch_tokens.high)}"),
        ("learning rate", number(plan.learning_rate.value), span(plan.learning_rate)),
        ("FLOPs, lifetime", f"{plan.flops.value:.3g}", f"{plan.flops.low:.3g} to {plan.flops.high:.3g}"),
    ]
    if plan.training_flops.value < 0.999 * plan.flops.value:
        rows.append(("FLOPs, training", f"{plan.training_flops.value:.3g}", ""))
    if plan.loss is not None:
        rows.append(("loss", number(plan.loss.value), span(plan.loss)))
    if plan.days is not None:
        rows.append(
            (f"days on {plan.cluster}", f"{plan.days.value:.3g}", f"{plan.days.low:.3g} to {plan.days.high:.3g}")
        )
    if plan.usd is not None:
        rows.append(("dollars", usd(plan.usd.value), f"{usd(plan.usd.low)} to {usd(plan.usd.high)}"))
    print_table(f"What the budget buys, by the law {plan.law}", ("", "value", "80% interval"), rows)
    if plan.batches:
        fastest = min(plan.batches, key=lambda point: point.days)
        print()
        print_table(
            "Time to the same loss, by batch",
            ("batch, tokens", "step, s", "tokens", "days", ""),
            [
                (
                    si(p.batch_tokens),
                    f"{p.step_s:.3g}",
                    si(p.tokens),
                    f"{p.days:.3g}",
                    "fastest" if p is fastest else "",
                )
                for p in plan.batches
            ],
        )
    print("\n" + "\n".join(f"  {line}" for line in plan.assumptions))


def write_budget(plan: BudgetPlan, out: Path) -> list[Path]:
    """Pictures in a folder: allocation against budget, and time to target against batch."""
    files = save_chart(allocation_chart(plan), out / "allocation")
    return files + (save_chart(batch_chart(plan), out / "batch") if plan.batches else [])


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
    x = alt.X("flops:Q", scale=alt.Scale(type="log"), title="budget, FLOPs", axis=alt.Axis(format=".0e"))
    y = alt.Y("value:Q", scale=alt.Scale(type="log"), title="parameters, tokens", axis=alt.Axis(format=".0e"))
    lines = alt.Chart(frame).mark_line().encode(x, y, alt.Color("what:N", title=None))
    here = pl.DataFrame(
        [
            {"flops": plan.flops.value, "what": what, "value": e.value, "low": e.low, "high": e.high}
            for what, e in (("parameters", plan.params), ("tokens", plan.tokens))
        ]
    )
    base = alt.Chart(here).encode(x, alt.Color("what:N", title=None))
    bars = base.mark_rule(strokeWidth=2).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    dots = base.mark_point(filled=True, size=90).encode(y, tooltip=["what", "value", "low", "high"])
    return (lines + bars + dots).properties(width=460, height=320, title=f"Compute-optimal split, {plan.law}")


def batch_chart(plan: BudgetPlan) -> Any:
    """Days to the same loss against batch: the knee."""
    import altair as alt
    import polars as pl

    frame = pl.DataFrame([{"batch": p.batch_tokens, "days": p.days, "tokens": p.tokens} for p in plan.batches])
    curve = (
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            alt.X("batch:Q", scale=alt.Scale(type="log"), title="batch, tokens", axis=alt.Axis(format=".0e")),
            alt.Y("days:Q", scale=alt.Scale(type="log"), title="days to the same loss"),
            tooltip=["batch", "days", "tokens"],
        )
    )
    mark = pl.DataFrame({"batch": [plan.critical_batch_tokens.value]})
    rule = alt.Chart(mark).mark_rule(color="#c53030", strokeDash=[4, 3]).encode(x="batch:Q")
    return (curve + rule).properties(
        width=460, height=320, title=f"Time to target on {plan.cluster}; critical batch red"
    )
