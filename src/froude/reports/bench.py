"""Froude's own speed for people."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from froude.reports.tables import console, print_table, seconds, si


class Progress:
    """A line on standard error that says what is being measured."""

    def __enter__(self) -> Self:
        from rich.console import Console

        self._status = Console(stderr=True).status("measuring")
        self._status.start()
        return self

    def say(self, name: str) -> None:
        """What comes next."""
        self._status.update(name.replace("_", " "))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()


def show_serve_speed(found: dict[str, Any]) -> None:
    """Print a row for each load."""
    columns = ("case", "requests", "tokens", "CPU", "requests/s", "against stepping", "same times")
    rows = [
        (
            name.replace("_", " "),
            f"{case['requests']:,}",
            si(case["tokens"]),
            seconds(case["cpu_s"]),
            f"{case['requests_per_cpu_s']:,.0f}",
            f"{case['reference']['speedup']:,.0f} x",
            "yes" if case["reference"]["equal"] else "NO",
        )
        for name, case in found["cases"].items()
    ]
    print_table("Serving simulator, one core, CPU seconds of the loop", columns, rows)
    say = console().print
    say(f"a whole `simulate serve` of 10,000 requests: {seconds(found['command_cpu_s'])}")
    say(f"64 replicas cost {found['replicas_64_over_8_cost_per_request']:.2f} times as much per request as 8")
    if "million_peak_rss_bytes" in found:
        say(f"a million requests hold {found['million_peak_rss_bytes'] / 1e6:.0f} MB at most")


def show_figures(title: str, found: dict[str, Any]) -> None:
    """Print names and values; names in ``_s`` are seconds."""
    rows = [
        (name.removesuffix("_s").replace("_", " "), seconds(value) if name.endswith("_s") else f"{value:,.4g}")
        for name, value in found.items()
    ]
    print_table(title, ("", ""), rows)
