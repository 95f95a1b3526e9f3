"""Real serving runs for people: progress, results, and predicted against measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from froude.reports.tables import percent, print_table, seconds, si

if TYPE_CHECKING:
    from froude.runtime.engine.api import ServeRun
    from froude.runtime.engine.check import RequestsCheck
    from froude.runtime.engine.twin import TwinCheck

LATENCIES = {"ttft": "time to first token", "tpot": "time per output token", "e2e": "end to end"}


class ServeBar:
    """Progress on standard error, drawn only when told to, so that it takes no time of its own.

    Where standard error is no terminal, a line for each phase.
    """

    def __init__(self, *, silent: bool) -> None:
        console = Console(file=sys.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        self._progress = Progress(
            *columns, console=console, auto_refresh=False, transient=True, disable=silent or not console.is_terminal
        )
        self._lines = not silent and not console.is_terminal
        self._phase = ""
        self._task = self._progress.add_task("starting", total=1.0)

    def __enter__(self) -> ServeBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: float) -> None:
        """Say what is going on and how much of it is done."""
        phase = what.partition(",")[0]
        if self._lines and phase != self._phase:
            print(phase, file=sys.stderr, flush=True)
        self._phase = phase
        self._progress.update(self._task, description=what, completed=done, refresh=True)


def run_rows(run: ServeRun) -> list[tuple[str, ...]]:
    """Mean and quantiles of each latency."""
    facts = run.json()
    return [
        (LATENCIES[metric], *(seconds(facts[f"{metric}_s"][q]) for q in ("mean", "p50", "p90", "p99")))
        for metric in LATENCIES
    ]


def print_serve_run(run: ServeRun, check: RequestsCheck | None) -> None:
    """Latencies of a replay, what the simulator makes of it, and where its files are."""
    facts = run.json()
    state = "interrupted, " if run.log.interrupted else ""
    title = f"{facts['completed']} of {facts['requests']} requests served in {seconds(facts['duration_s'])} ({state}"
    title += f"{si(facts['output_tokens_per_s'])} output tokens/s, {facts['preemptions']} preemptions)"
    print_table(title, ("", "mean", "p50", "p90", "p99"), run_rows(run))
    if check is not None:
        print_requests_check(check)
    print(f"Written to {run.out}: report.html, requests.jsonl, meta.json, iterations.csv, timeline.json (Perfetto)")
    print(f"Predict it from another run's calibration: froude check requests {run.out} --calibrated-on OTHER_RUN")


def check_rows(check: RequestsCheck) -> list[tuple[str, ...]]:
    """Predicted and measured side by side, and the errors."""
    predicted, measured = check.summaries()
    rows: list[tuple[str, ...]] = []
    for metric, name in LATENCIES.items():
        errors = check.errors(metric)
        for quantile in ("mean", "p50", "p99"):
            rows.append(
                (
                    f"{name}, {quantile}",
                    seconds(predicted[f"{metric}_s"][quantile]),
                    seconds(measured[f"{metric}_s"][quantile]),
                    _signed(errors[f"{quantile}_error"]),
                    percent(errors["median_ape"]) if quantile == "p50" else "",
                )
            )
    rows.append(("output tokens/s", *map(si, check.throughputs), _signed(check.throughput_error), ""))
    if check.on_this_machine is not None:
        rows.append(("preemptions", *map(str, check.on_this_machine.preemptions), "", ""))
    return rows


def print_requests_check(check: RequestsCheck) -> None:
    """Predicted and measured side by side, and the errors."""
    print_table(
        f"{len(check.measured.e2e_s)} requests, simulated and served",
        ("", "simulated", "served", "error", "median of single requests"),
        check_rows(check),
    )
    here = check.on_this_machine
    if here is not None and here.slowdown == here.slowdown:  # known of engines whose iterations are seen
        print(
            f"Calibrated on {here.calibration.iterations} iterations, median error "
            f"{percent(here.calibration.median_ape)}. The iterations of this run took {_signed(here.slowdown - 1.0)} "
            f"against that; the processor was elsewhere {percent(here.waited)} of the time."
        )


def _signed(fraction: float) -> str:
    return f"{'+' if fraction > 0 else ''}{percent(fraction)}"


def print_twin(twin: TwinCheck) -> None:
    """Errors of every load, and the order of the schedulers."""
    for check in twin.engines:
        found = check.json()
        rows: list[tuple[str, ...]] = [
            (
                name,
                f"{row['rate']:.2f}/s",
                str(row["requests"]),
                _signed(row["throughput_error"]),
                percent(row["tpot"]),
                percent(row["ttft"]),
                percent(row["e2e"]),
                _signed(row["pace"] - 1.0),
                percent(row["waited"]),
            )
            for name, row in found["loads"].items()
        ]
        median = found["median"]
        rows.append(("median", "", "", *(percent(median[k]) for k in ("throughput", "tpot", "ttft", "e2e")), "", ""))
        columns = ("load", "rate", "requests", "throughput", "TPOT", "TTFT", "end to end", "pace", "elsewhere")
        title = f"{check.engine}: calibrated on one load ({check.iterations} iterations), median errors on others"
        print_table(title, columns, rows)
        if check.spearman is not None:
            ranks = [(n, *(seconds(t) for t in row["p99_ttft_s"])) for n, row in found["schedulers"].items()]
            title = f"p99 time to first token under contention; rank correlation {check.spearman:.2f}"
            print_table(title, ("scheduler", "simulated", "served"), ranks)
    print(
        f"{seconds(twin.seconds)} in all. Pace: iterations against the calibration's for the very same iterations; "
        "elsewhere: time in which the processor worked for others."
    )
