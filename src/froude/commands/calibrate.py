"""`froude calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, emit


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("calibrate")(calibrate)


def calibrate(
    logs: Annotated[
        list[Path],
        typer.Argument(metavar="LOG...", help="Directories of run train, CSV files, Megatron-LM or torchtitan logs."),
    ],
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="The plan that ran, for logs: once for all, or once for each.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the constants here (YAML), for --constants.", show_default=False)
    ] = None,
    kernels: Annotated[
        str, typer.Option(help="Prices of kernels beneath what is learned: fitted, or measured.")
    ] = "fitted",
    as_json: Json = False,
) -> None:
    """Learn a cluster's few free constants from its own runs; says how much better runs left out are predicted."""
    from froude.planning import calibrate as planning
    from froude.reports.explain import show_calibration
    from froude.training.plan import TrainPlan

    found = planning.calibrate(logs, plans=[TrainPlan.read(path) for path in plan or ()], out=out, kernels=kernels)

    def show() -> None:
        show_calibration(found)
        if out is not None:
            print(f"\nwrote {out}")

    emit(found.json(), as_json=as_json, show=show, warnings=found.warnings)
