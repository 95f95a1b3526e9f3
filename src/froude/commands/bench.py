"""`froude bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, emit, one_thread_of_blas

group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="How fast is Froude itself?")


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(group, name="bench")


@group.command("serve")
def serve(
    traces: Annotated[
        Path | None,
        typer.Option(envvar="FROUDE_TRACES", help="Folder with the published Azure and Mooncake traces."),
    ] = None,
    million: Annotated[bool, typer.Option(help="Also a million requests, with its peak of memory.")] = True,
    as_json: Json = False,
) -> None:
    """Speed of the serving simulator, each figure beside the stepping reference."""
    from froude.planning.bench import bench_serve
    from froude.reports.bench import Progress, show_serve_speed

    with Progress() as progress:
        found = bench_serve(traces, million=million, progress=progress.say)
    warnings = [] if traces else ["no --traces: synthetic loads of the same means stand in for the published traces"]
    emit(found, as_json=as_json, show=lambda: show_serve_speed(found), warnings=warnings)


@group.command("train")
def train(as_json: Json = False) -> None:
    """Time to search Llama-3.1-70B's layouts on 1,024 H100, and to play the best one by events."""
    from froude.planning.bench import bench_train
    from froude.reports.bench import show_figures

    found = bench_train()
    emit(found, as_json=as_json, show=lambda: show_figures("Training search", found))


@group.command("laws")
def laws(as_json: Json = False) -> None:
    """Time to fit five parameters to 240 points from 500 starts, and to bootstrap the fit 1,000 times."""
    one_thread_of_blas()
    from froude.laws.bench import bench_laws
    from froude.reports.bench import show_figures

    found = bench_laws()
    emit(found, as_json=as_json, show=lambda: show_figures("Law fitting", found))
