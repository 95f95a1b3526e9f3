"""`froude show`."""

from __future__ import annotations

import typer

group = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="What Froude knows: models, devices, laws, techniques."
)


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(group, name="show")
