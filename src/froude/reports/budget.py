"""A budget's plan for people: the choices, and pictures of allocation and of time against batch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from froude.reports.laws import number, span
from froude.reports.tables import print_table, si, usd

if TYPE_CHECKING:
    from froude.core.estimate import Estimate
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
    others = plan.choices
    print()
    print_table(
        "What else it decides, each by its own law",
        ("", "value", "80% interval"),
        [
            ("vocabulary", si(others.vocab_size.value), f"{si(others.vocab_size.low)} to {si(others.vocab_size.high)}"),
            ("experts, if a mixture", number(others.experts.value), span(others.experts)),
            ("  share of them active", number(others.active_share.value), "-"),
            ("  parameters active", si(others.mixture_active_params.value), _si_span(others.mixture_active_params)),
            ("  tokens", si(others.mixture_tokens.value), _si_span(others.mixture_tokens)),
            ("bits in training", number(others.training_bits.value), span(others.training_bits)),
            ("bits of served weights", number(others.inference_bits.value), span(others.inference_bits)),
            *(
                [("error on 46 tasks", number(others.downstream_error.value), span(others.downstream_error))]
                if others.downstream_error
                else []
            ),
        ],
    )
    if plan.target_points:
        _show_targets(plan)
    print("\n" + "\n".join(f"  {line}" for line in plan.assumptions))


def _show_targets(plan: BudgetPlan) -> None:
    """Time to the same loss by batch on the cluster, then by number of devices."""
    from froude.planning.knee import fastest

    turn = plan.knee
    for title, points, word in (
        ("Time to the same loss, by batch", plan.batches, "fastest"),
        ("... by devices, each at its fastest batch", fastest(plan.target_points), "knee"),
    ):
        mark = turn if word == "knee" else min(points, key=lambda point: point.days, default=None)
        print()
        print_table(
            title,
            ("devices", "batch, tokens", "step, s", "tokens", "days", "device-days", ""),
            [
                (
                    str(p.devices),
                    si(p.batch_tokens),
                    f"{p.step_s:.3g}",
                    si(p.tokens),
                    f"{p.days:.3g}",
                    f"{p.days * p.devices:.4g}",
                    word if p is mark or p == mark else "",
                )
                for p in points
            ],
        )


def _si_span(estimate: Estimate) -> str:
    return f"{si(estimate.low)} to {si(estimate.high)}" if estimate.high > estimate.low else "-"


def write_budget(plan: BudgetPlan, out: Path) -> list[Path]:
    """Pictures in a folder: allocation, isoFLOP curves, loss surface, and time to target against batch."""
    from froude.laws.allocation import minimisable
    from froude.reports.law_charts import allocation_chart, batch_chart, iso_flop_chart, save_chart, surface_chart

    files = save_chart(allocation_chart(plan), out / "allocation")
    if minimisable(plan.fitted.law):
        here = {"params": plan.params.value, "tokens": plan.tokens.value}
        budgets = [plan.training_flops.value * 10.0**power for power in range(-3, 4)]
        iso = iso_flop_chart(plan.fitted, budgets, unique_tokens=plan.unique_tokens)
        files += save_chart(iso, out / "isoflop")
        spans = [(here[name] / 300.0, here[name] * 300.0) for name in ("params", "tokens")]
        area = surface_chart(plan.fitted, spans[0], spans[1], here=here, unique_tokens=plan.unique_tokens)
        files += save_chart(area, out / "surface")
    return files + (save_chart(batch_chart(plan), out / "batch") if plan.target_points else [])
