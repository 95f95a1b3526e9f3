"""`froude explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, Out, emit


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("explain")(explain)


def explain(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="A plan, such as `plan train --out` writes.")],
    measured_step_s: Annotated[
        float | None, typer.Option(help="What a step really took: what explains the gap?", show_default=False)
    ] = None,
    against: Annotated[str | None, typer.Option(help="Why not this layout: dp=32,tp=8,...", show_default=False)] = None,
    constants: Annotated[
        Path | None, typer.Option(help="Constants of this cluster, as `froude calibrate` writes.", show_default=False)
    ] = None,
    kernels: Annotated[
        str | None, typer.Option(help="Prices of kernels: fitted or measured, if not as the plan says.")
    ] = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Where a plan's step goes, what would help most, why not another layout, what explains a measured step."""
    from froude.planning import explain as planning
    from froude.reports.explain import show_explanation, write_explanation_report
    from froude.training.plan import TrainPlan

    found = planning.explain(
        TrainPlan.read(plan), measured_step_s=measured_step_s, against=against, constants=constants, kernels=kernels
    )
    wrote = None
    if out is not None:
        wrote = write_explanation_report(found, out, " ".join(["froude", *sys.argv[1:]]))

    def show() -> None:
        show_explanation(found)
        if wrote is not None:
            print(f"\nwrote {wrote}")

    emit(found.json(), as_json=as_json, show=show, assumptions=found.assumptions, warnings=found.warnings)
