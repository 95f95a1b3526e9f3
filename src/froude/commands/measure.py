"""`froude measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, emit

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure this machine.")


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(group, name="measure")


@group.callback()
def _group() -> None:
    """Measure this machine."""


@group.command("device")
def measure_device(
    quick: Annotated[
        bool, typer.Option("--quick", help="The measurement that takes half a minute (the only one).")
    ] = True,
    processes: Annotated[
        int, typer.Option(help="Processes that share the machine, as ranks of a run would.", min=1)
    ] = 2,
    out: Annotated[Path | None, typer.Option(help="YAML file for the profile.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """What each of several processes gets out of this machine: products, attention, memory, messages.

    The profile serves as a cluster: --cluster profile:box.yaml:2.
    """
    from froude.reports import runs
    from froude.tank.device import busy_warning
    from froude.tank.device import measure_device as measure

    with runs.FractionBar("measuring", silent=as_json) as bar:
        device = measure(processes=processes, on_progress=bar.update)
    if out is not None:
        device.write(out)
    emit(
        {"device": device.model_dump(mode="json")},
        as_json=as_json,
        show=lambda: runs.print_device(device, None if out is None else str(out)),
        warnings=busy_warning(device),
    )
