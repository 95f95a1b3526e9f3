"""Laws for people: fits, forms, comparisons and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from froude.reports.tables import percent, print_table

if TYPE_CHECKING:
    from froude.core.estimate import Estimate
    from froude.laws.api import Fits, Prediction
    from froude.laws.check import LawCheck
    from froude.laws.fitting import Fit

FLAT_RISE = 0.05  # of the objective, when a coefficient is halved or doubled and the others refitted
ISO_FLOPS = 7  # curves, over the compute of the runs


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def span(estimate: Estimate) -> str:
    """An 80% interval."""
    return f"{number(estimate.low)} to {number(estimate.high)}" if estimate.high > estimate.low else "-"


def show_fit(result: Fit) -> None:
    """Print a fit: coefficients, quality, held-out error, outliers."""
    rows = [
        (s.name, number(result.coefficients[s.name].value), span(result.coefficients[s.name]), s.unit, s.meaning)
        for s in result.law.symbols
    ]
    title = f"{result.law.name}: {result.law.form}"
    print_table(title, ("coefficient", "value", "80% interval", "unit", "meaning"), rows)
    said = f"\n{result.n} rows, R2 {result.r2:.4f}, objective {result.objective:.6g}, {result.fit_s:.2f} s"
    if result.holdout:
        held = result.holdout
        said += f"\nheld out {held.rule}: {held.n} rows, median error {percent(held.median_ape, 2)}"
        said += f", p90 {percent(held.p90_ape, 2)}, rank correlation {held.spearman:.3f}"
    if result.outliers:
        named = ", ".join(f"row {int(o['row'])} ({o['residual']:+.3f})" for o in result.outliers[:6])
        said += f"\noutliers: {len(result.outliers)}: {named}"
    print(said)


def show_fits(fits: Fits) -> None:
    """Print one fit, or a comparison and the best."""
    if fits.compared:
        rows = [
            (
                one.law.name,
                percent(held.median_ape, 2),
                percent(held.p90_ape, 2),
                f"{held.spearman:.3f}",
                f"{one.r2:.4f}",
                str(len(one.law.symbols)),
            )
            for one in fits.fits
            if (held := one.holdout) is not None
        ]
        rule = fits.best.holdout.rule if fits.best.holdout else ""
        header = ("law", "median error", "p90 error", "rank corr.", "R2 (all rows)", "coefficients")
        print_table(f"Laws by held-out error ({rule})", header, rows)
        print(f"not fitted, for want of columns or rows: {', '.join(fits.skipped)}\n" if fits.skipped else "")
    show_fit(fits.best)
    _show_diagnosis(fits)


def _show_diagnosis(fits: Fits) -> None:
    values = fits.best.fitted.values()
    for run in fits.influence[:1]:
        changes = {name: left / values[name] - 1.0 for name, left in run["without"].items() if values[name]}
        moved = max(changes, key=lambda name: abs(changes[name]))
        print(f"most influential run: row {run['row']}; without it {moved} changes by {percent(changes[moved], 1)}")
    flat = [name for name, rise in fits.profile.items() if min(rise.values()) < FLAT_RISE]
    if flat:
        least = percent(FLAT_RISE, 0)
        print(f"flat: halving or doubling {', '.join(flat)} raises the objective by less than {least}, others refitted")


def write_fits(fits: Fits, out: Path) -> None:
    """The best fit as YAML at ``out`` (a .yaml file or a folder), and its pictures beside it."""
    import numpy as np

    from froude.laws.allocation import minimisable
    from froude.laws.objective import sizes
    from froude.reports.law_charts import fit_chart, iso_flop_chart, save_chart, surface_chart

    file = out if out.suffix in {".yaml", ".yml"} else out / "fit.yaml"
    best = fits.best
    best.for_prediction().write(file)
    stem = file.with_suffix("")
    save_chart(fit_chart(best), stem)
    if not minimisable(best.law):
        return
    data = best.table
    flops = data.get("flops", 6.0 * sizes(data))
    runs = {"params": data["params"], "tokens": data["tokens"], "flops": flops, "loss": data["loss"]}
    budgets = np.geomspace(flops.min(), flops.max(), ISO_FLOPS).tolist()
    save_chart(iso_flop_chart(best.fitted, budgets, runs), stem.with_name(f"{stem.name}-isoflop"))
    params, tokens = ((float(runs[n].min()) / 1.5, float(runs[n].max()) * 1.5) for n in ("params", "tokens"))
    save_chart(surface_chart(best.fitted, params, tokens, runs), stem.with_name(f"{stem.name}-surface"))


def show_prediction(result: Prediction) -> None:
    """Print a prediction with its interval and origin."""
    print(f"{result.target} {number(result.estimate.value)}   80% interval {span(result.estimate)}")
    for line in result.assumptions:
        print(f"  {line}")


def print_laws(found: list[dict[str, Any]]) -> None:
    """Print every law in one line."""
    rows = [
        (
            law["name"],
            law["form"],
            law["source"].split(")")[0] + ")",
            str(len(law["published"])) if law["published"] else "-",
            "yes" if law["allocates"] else "",
        )
        for law in found
    ]
    print_table("Laws", ("law", "form", "source", "published sets", "allocates"), rows, left=3)


def print_law(law: dict[str, Any]) -> None:
    """Print everything about a law."""
    print(f"{law['name']}: {law['form']}\n{law['about']}\n{law['source']}")
    print(f"predicts {law['target']} from {', '.join(law['inputs'])}\n")
    rows = [(symbol["name"], symbol["unit"], symbol["meaning"]) for symbol in law["symbols"]]
    print_table("Symbols", ("symbol", "unit", "meaning"), rows, left=3)
    for found in law["published"]:
        print(f"\n{found['name']}: {found['source']}\n  data: {found['data']}; confidence: {found['confidence']}")
        if found["note"]:
            print(f"  note: {found['note']}")
        for name, (low, high) in found["ranges"].items():
            print(f"  {name} {number(low)} to {number(high)}")
        values = [
            (name, number(value["value"]), f"{number(value['low'])} to {number(value['high'])}")
            if value["high"] > value["low"]
            else (name, number(value["value"]), "-")
            for name, value in found["coefficients"].items()
        ]
        print_table("", ("coefficient", "value", "80% interval"), values)


def show_law_check(result: LawCheck) -> None:
    """Print published figures beside ours, then errors on held-out runs."""
    print_table(
        "Published figures",
        ("law", "figure", "published", "ours", "difference", ""),
        [
            (
                f.law,
                f.quantity,
                f"{f.published:.7g}",
                f"{f.ours:.7g}",
                percent(f.difference, 3),
                "" if f.within else "miss",
            )
            for f in result.figures
        ],
        left=2,
    )
    print()
    print_table(
        "Runs held out: the largest 15% by compute (median, p90, rank); cover of 80% intervals on random runs",
        ("table", "law", "n", "median", "p90", "rank corr.", "cover"),
        [
            (
                h.table,
                h.law,
                str(h.n),
                percent(h.median_ape, 2),
                percent(h.p90_ape, 2),
                f"{h.spearman:.3f}",
                "-" if h.coverage_80 is None else percent(h.coverage_80, 0),
            )
            for h in result.holdout
        ],
        left=2,
    )
    for regret in result.regret:
        print(
            f"\nlearning rate and batch at {regret.params:.3g} parameters, unseen ({regret.cells} cells): loss above "
            f"the best {percent(regret.law, 3)} by the law, {percent(regret.copy_nearest, 3)} by the nearest cell's"
        )
    for skipped in result.skipped:
        print(f"skipped {skipped['table']}: {skipped['reason']}")


class Progress:
    """What is being checked, on standard error, when a person is watching."""

    def __init__(self) -> None:
        from rich.console import Console

        self._status = Console(stderr=True).status("starting")

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def say(self, text: str) -> None:
        """Show it."""
        self._status.update(text)
