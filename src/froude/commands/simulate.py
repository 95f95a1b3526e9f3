"""`froude simulate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, emit

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What will happen?")


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(group, name="simulate")


@group.command("train")
def train(
    plan: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="A plan, such as `plan train --out` writes.")],
    trace: Annotated[
        Path | None, typer.Option(help="Write the step's timeline for Perfetto.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Play one training step of a plan by events."""
    from froude.reports.training import show_simulated
    from froude.training.api import simulate_train
    from froude.training.plan import TrainPlan

    step = simulate_train(TrainPlan.read(plan), trace=trace)
    emit(step.json(), as_json=as_json, show=lambda: show_simulated(step))
