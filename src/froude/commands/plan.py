"""`froude plan`."""

from __future__ import annotations

import typer

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What should I run?")


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(group, name="plan")
