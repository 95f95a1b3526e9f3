"""Methods that can be switched on, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from froude.reports.tables import console, print_table


def print_techniques(found: Sequence[dict[str, Any]]) -> None:
    """One line each."""
    rows = [[item["name"], item["kind"], item["source"] or "-"] for item in found]
    print_table(f"{len(rows)} published methods", ["name", "acts as", "source"], rows, left=3)


def print_technique(item: dict[str, Any]) -> None:
    """Everything about one."""
    rows = [["acts as", item["kind"]], ["switch on", item["use"]]]
    if item["quality"]:
        rows.append(["effect on the model", item["quality"]])
    if item["conflicts"]:
        rows.append(["conflicts with", ", ".join(item["conflicts"])])
    rows += [
        [f"knob {name}", "must be given" if value is None else str(value)] for name, value in item["knobs"].items()
    ]
    print_table(item["name"], ["", ""], rows, left=2)
    out = console()
    out.print(f"\n{item['does']}\n", soft_wrap=True)
    if item["knobs"]:
        out.print(f"{item['about_knobs']}\n", soft_wrap=True)
    if item["source"]:
        out.print(f"Source: {item['source']}", soft_wrap=True)
