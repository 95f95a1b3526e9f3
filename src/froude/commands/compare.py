"""`froude compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, Out, emit


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("compare")(compare)


def compare(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="A plan, such as `plan train --out` writes.")],
    technique: Annotated[
        list[str], typer.Option("--with", help="A technique to switch on (repeatable); see `show techniques`.")
    ],
    knob: Annotated[
        list[str] | None, typer.Option(help="hpz=false, or zero-plus-plus.hpz=false (repeatable).", show_default=False)
    ] = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Would this technique help me? Both predictions, the difference, and where it comes from."""
    from froude.planning import compare as planning
    from froude.reports.compare import show_comparison, write_comparison_report
    from froude.training.plan import TrainPlan

    found = planning.compare(TrainPlan.read(plan), planning.parse_uses(technique, knob or ()))
    wrote = None
    if out is not None:
        wrote = write_comparison_report(found, out, " ".join(["froude", *sys.argv[1:]]))

    def show() -> None:
        show_comparison(found)
        if wrote is not None:
            print(f"\nwrote {wrote}")

    emit(found.json(), as_json=as_json, show=show, assumptions=found.assumptions, warnings=found.warnings)
