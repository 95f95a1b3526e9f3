"""Numbers and tables for people: the one place where SI values become text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(value: float, unit: str = "") -> str:
    """Three significant digits with a decimal prefix: 4.23 T."""
    if not math.isfinite(value):
        return "-"
    for scale, prefix in _SCALES:
        if abs(value) >= scale:
            return f"{value / scale:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float) -> str:
    """A duration in the unit a person would use."""
    if not math.isfinite(value):
        return "-"
    for scale, unit in ((86400.0 * 2, "d"), (3600.0 * 2, "h"), (120.0, "min")):
        if abs(value) >= scale:
            return f"{value / {'d': 86400.0, 'h': 3600.0, 'min': 60.0}[unit]:.3g} {unit}"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns" if value else "0 s"


def gib(value: float) -> str:
    """Bytes in binary units."""
    for scale, unit in ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} B"


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return "-" if not math.isfinite(fraction) else f"{100.0 * fraction:.{digits}f}%"


def usd(value: float) -> str:
    """Dollars without false precision."""
    return f"${value:,.0f}" if value >= 100 else f"${value:.3g}"


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, prose: Sequence[str] = ()
) -> None:
    """Print a table: the first ``left`` columns and those named in ``prose`` are text, the others numbers."""
    out = console()
    if title:
        out.print(title, style="bold", soft_wrap=True)
    table = Table(header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left or column in prose else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table)


def console() -> Console:
    """The console that people read; wide enough for its tables when output goes to a file."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=160)
