"""Predictions against measured training runs: step time, memory, and what runs out of memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from froude.core.errors import FroudeError
from froude.core.measurements import Skipped, Unusable, read_rows
from froude.training.accuracy import memory_spread, step_spread
from froude.training.choice import Candidate
from froude.training.many import ROUNDS, Steps
from froude.training.plan import Layout
from froude.training.runs import COLUMNS, Run, run_of
from froude.training.scenario import Scenario
from froude.training.scores import Check, Scored
from froude.training.step import StepPrediction, predict


def predicted_step_s(scenario: Scenario, layout: Layout) -> float:
    """Seconds per step of one plan.

    Raises:
        FroudeError: for a layout that is impossible, saying why.
    """
    steps = Steps([(scenario, layout)])
    if steps.errors[0] is not None:
        raise FroudeError(steps.errors[0])
    return float(steps.seconds()[0])


def check_train(path: str | os.PathLike[str]) -> Check:
    """Predict every usable row of a table of measured training steps, and compare.

    Args:
        path: a CSV file with the columns of `COLUMNS`.

    Raises:
        FroudeError: when the file cannot be read or lacks columns.
    """
    scored: list[Scored] = []
    skipped: list[Skipped] = []
    runs: list[tuple[Run, float]] = []
    rows = read_rows(path, (*COLUMNS, "step_s", "use"))
    for cells in rows:
        try:
            runs.append((run_of(cells), float(cells["step_s"])))
        except Unusable as reason:
            skipped.append(Skipped(str(cells["id"]), str(reason)))
    steps = Steps([(run.scenario, run.layout) for run, _ in runs])
    for (run, measured_s), predicted_s, error in zip(runs, steps.seconds(), steps.errors, strict=True):
        if error is not None:
            skipped.append(Skipped(run.id, error))
            continue
        spread, _ = step_spread(run.scenario)
        candidate = Candidate.of(run)
        scored.append(
            Scored(run.id, run.source, float(predicted_s), measured_s, run.assumed, run.kind, spread, candidate)
        )
    unusable = sum(cells["use"] not in (None, "yes") for cells in rows)
    return Check(len(rows), tuple(scored), tuple(skipped), unusable)


def check_memory(path: str | os.PathLike[str]) -> Check:
    """Predict the peak memory of every row of a table of measurements, and compare in bytes.

    What was measured matters (column ``mem_kind``): see `predicted_bytes`. ``mem_value`` is in bytes, or in GB or GiB
    where the kind says so.

    Raises:
        FroudeError: when the file cannot be read or lacks columns.
    """
    scored: list[Scored] = []
    skipped: list[Skipped] = []
    rows = read_rows(path, (*COLUMNS, "mem_kind", "mem_value"))
    for cells in rows:
        try:
            run = run_of(cells)
            predicted = predicted_bytes(run, str(cells["mem_kind"]))
        except (Unusable, FroudeError) as reason:
            skipped.append(Skipped(str(cells["id"]), str(reason)))
            continue
        measured = float(cells["mem_value"]) * _unit(str(cells["mem_kind"]))
        spread = memory_spread(run.scenario)
        scored.append(Scored(run.id, run.source, predicted, measured, run.assumed, run.kind, spread))
    return Check(len(rows), tuple(scored), tuple(skipped))


def predicted_bytes(run: Run, measured: str) -> float:
    """Peak bytes of what was measured: of tensors ("allocated", "active"), of the allocator ("reserved"), or of all.

    Of the neediest stage; where the rank that logs was asked, of the last: that is where Megatron-LM writes its logs.
    """
    ledger = settled(run.scenario, run.layout).ledger(own_machine=False)
    stage = max(ledger.stages) if "logging rank" in measured else None
    if "alloc" in measured or "active" in measured:
        return ledger.bytes_of("allocated", stage)
    return ledger.bytes_of("reserved" if "reserved" in measured else "device", stage)


def _unit(measured: str) -> float:
    """Bytes of the unit that a kind of measurement names; bytes where it names none."""
    return 2.0**30 if "GiB" in measured else 1e9 if "GB" in measured else 1.0


def settled(scenario: Scenario, layout: Layout) -> StepPrediction:
    """The prediction with no more micro-batches than it takes to fill the pipeline: memory peaks there."""
    stages, micro_batches = layout.pipeline_parallel, scenario.micro_batches(layout)
    few = min(micro_batches, micro_batches % stages + ROUNDS * stages)
    return predict(_with_micro_batches(scenario, layout, few), [layout])[0]


@dataclass(frozen=True)
class OutOfMemoryCheck:
    """Which runs fit: predicted against what happened.

    Attributes:
        rows: read from both tables.
        outcomes: of every evaluated run: id, source, whether it ran, and the probability of fit that was predicted.
        skipped: what was not evaluated, and why.
    """

    rows: int
    outcomes: tuple[tuple[str, str, bool, float], ...]
    skipped: tuple[Skipped, ...]

    def balanced_accuracy(self, source: str | None = None) -> float | None:
        """Mean of the shares of failed and of fitting runs that are called right at even odds."""
        shares = []
        for ran in (False, True):
            chances = [p for _, s, happened, p in self.outcomes if happened is ran and source in (None, s)]
            if not chances:
                return None
            shares.append(sum((p >= 0.5) is ran for p in chances) / len(chances))
        return sum(shares) / 2

    def calibration(self) -> list[dict[str, float]]:
        """Of plans given a probability of fit in each fifth: how many there are, and the share that fitted."""
        table = []
        for low in (0.0, 0.2, 0.4, 0.6, 0.8):
            ran = [r for _, _, r, p in self.outcomes if low <= p < low + 0.2 or (low == 0.8 and p == 1.0)]
            if ran:
                table.append({"from": low, "to": low + 0.2, "n": len(ran), "fitted": sum(ran) / len(ran)})
        return table

    def json(self) -> dict[str, Any]:
        """What ``froude check oom --json`` prints."""
        sources = dict.fromkeys(source for _, source, _, _ in self.outcomes)
        return {
            "rows": self.rows,
            "evaluated": len(self.outcomes),
            "skipped": [{"id": item.id, "reason": item.reason} for item in self.skipped],
            "balanced_accuracy": self.balanced_accuracy(),
            "calibration": self.calibration(),
            "by_source": {
                source: {
                    "failed": sum(s == source and not ran for _, s, ran, _ in self.outcomes),
                    "ran": sum(s == source and ran for _, s, ran, _ in self.outcomes),
                    "balanced_accuracy": self.balanced_accuracy(source),
                }
                for source in sources
            },
        }


SWEEP = ("source", "model", "device", "seq", "n_gpus")
"""Columns on which runs of one sweep agree."""


def check_oom(path: str | os.PathLike[str], ran: str | os.PathLike[str] | None = None) -> OutOfMemoryCheck:
    """Predict whether runs fit: those that ran out of memory, and those of the same sweeps that did not.

    Args:
        path: table of runs that ran out of memory.
        ran: table of runs that did not (default: ``train_measured.csv`` beside ``path``).

    Raises:
        FroudeError: when a file cannot be read or lacks columns.
    """
    failed = read_rows(path, COLUMNS)
    beside = Path(ran) if ran is not None else Path(path).parent / "train_measured.csv"
    sweeps = {_sweep(cells) for cells in failed}
    fitting = [cells for cells in read_rows(beside, COLUMNS) if _sweep(cells) in sweeps]
    outcomes: list[tuple[str, str, bool, float]] = []
    skipped: list[Skipped] = []
    for cells, happened in [*((c, False) for c in failed), *((c, True) for c in fitting)]:
        try:
            run = run_of(cells)
            outcomes.append((run.id, run.source, happened, settled(run.scenario, run.layout).p_fit))
        except (Unusable, FroudeError) as reason:
            skipped.append(Skipped(str(cells["id"]), str(reason)))
    return OutOfMemoryCheck(len(failed) + len(fitting), tuple(outcomes), tuple(skipped))


def _sweep(cells: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(cells.get(column)) for column in SWEEP)


def _with_micro_batches(scenario: Scenario, layout: Layout, count: int) -> Scenario:
    """The same scenario with as many micro-batches per replica."""
    tokens = count * layout.data_parallel * layout.micro_batch * scenario.job.seq_len
    return replace(scenario, job=scenario.job.model_copy(update={"global_batch_tokens": tokens}))
