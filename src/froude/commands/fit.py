"""`froude fit` and `froude predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from froude.commands.shell import Json, emit, one_thread_of_blas


def register(app: typer.Typer) -> None:
    """Add the command(s) to the application."""
    app.command("fit", help="What law do my runs follow?")(_fit)
    app.command("predict", help="What a fitted or published law predicts for a run.")(_predict)


def _fit(
    runs: Annotated[Path, typer.Argument(metavar="RUNS.csv", help="A table of training runs, one row a run.")],
    law: Annotated[str, typer.Option("--law", help="A law's name (froude show laws), or 'all' to compare.")],
    columns: Annotated[str | None, typer.Option(help="Which column is which: loss=val_loss,params=N.")] = None,
    where: Annotated[
        str | None, typer.Option(help="Only rows where columns have these values: val=edu,params=1e8..1e9.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples behind the 80% intervals.")] = 200,
    holdout: Annotated[str | None, typer.Option(help="Also predict rows unseen: largest:0.15, random:0.2.")] = None,
    priors: Annotated[str | None, typer.Option(help="'published': hold exponents near published values.")] = None,
    emphasis: Annotated[str, typer.Option(help="Weigh runs by compute to this power, or 'auto'.")] = "0",
    starts: Annotated[int, typer.Option(min=1, help="Random starts.")] = 300,
    seed: Annotated[int, typer.Option(help="Of starts and resamples.")] = 0,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="fit.yaml (or a folder): the fitted law, and its picture beside it.")
    ] = None,
) -> None:
    one_thread_of_blas()
    from froude.laws.api import fit_file
    from froude.reports.laws import show_fits, write_fits

    fits = fit_file(
        runs,
        law,
        columns=columns,
        where=where,
        bootstrap=bootstrap,
        holdout=holdout,
        priors=priors,
        emphasis=emphasis,
        starts=starts,
        seed=seed,
    )
    if out is not None:
        write_fits(fits, out)
    emit(
        fits.json(), as_json=as_json, show=lambda: show_fits(fits), assumptions=fits.assumptions, warnings=fits.warnings
    )


def _predict(
    inputs: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="The run: params=7e9 tokens=2e12.")],
    law: Annotated[str, typer.Option("--law", help="fit.yaml, or a law's name for its published coefficients.")],
    as_json: Json = False,
) -> None:
    one_thread_of_blas()
    from froude.laws.api import predict
    from froude.reports.laws import show_prediction

    result = predict(law, inputs)
    emit(
        result.json(),
        as_json=as_json,
        show=lambda: show_prediction(result),
        assumptions=result.assumptions,
        warnings=result.warnings,
    )
