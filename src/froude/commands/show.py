"""`froude show`."""

from __future__ import annotations

from typing import Annotated

import typer

from froude.commands.shell import Json, emit

group = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="What Froude knows: models, devices, laws, techniques."
)


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(group, name="show")


@group.command("models")
def show_models(
    name: Annotated[str | None, typer.Argument(help="A named model, a config.json or its folder.")] = None,
    as_json: Json = False,
) -> None:
    """Models that can be named, or everything about one."""
    from froude.models.catalogue import list_models
    from froude.reports import catalogues

    found = list_models(name)
    emit(
        {"models": [catalogues.model_facts(arch) for arch in found]},
        as_json=as_json,
        show=lambda: catalogues.print_models(found) if name is None else catalogues.print_model(found[0]),
    )


@group.command("laws")
def show_laws(
    name: Annotated[str | None, typer.Argument(help="A law.")] = None,
    as_json: Json = False,
) -> None:
    """Scaling laws that can be fitted and used, or everything about one."""
    from froude.laws.api import list_laws
    from froude.reports import laws as report

    found = list_laws(name)
    emit(
        {"laws": found},
        as_json=as_json,
        show=lambda: report.print_laws(found) if name is None else report.print_law(found[0]),
    )


@group.command("devices")
def show_devices(
    name: Annotated[str | None, typer.Argument(help="A device by canonical name or alias.")] = None,
    as_json: Json = False,
) -> None:
    """Devices that can be named, or everything about one."""
    from froude.machines.device import list_devices
    from froude.reports import catalogues

    found = list_devices(name)
    emit(
        {"devices": [catalogues.device_facts(device) for device in found]},
        as_json=as_json,
        show=lambda: catalogues.print_devices(found) if name is None else catalogues.print_device(found[0]),
    )


@group.command("techniques")
def show_techniques(
    name: Annotated[str | None, typer.Argument(help="A technique, schedule, scheduler or controller.")] = None,
    as_json: Json = False,
) -> None:
    """Published methods that can be switched on, or everything about one."""
    from froude.planning.methods import list_techniques
    from froude.reports import techniques as report

    found = list_techniques(name)
    emit(
        {"techniques": found},
        as_json=as_json,
        show=lambda: report.print_techniques(found) if name is None else report.print_technique(found[0]),
    )
