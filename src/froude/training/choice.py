"""Choice: of the layouts that a source measured side by side, how good is the one that Froude ranks first?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from froude.training.runs import Run

if TYPE_CHECKING:
    from froude.training.scores import Scored

MIN_LAYOUTS = 8
"""A sweep with fewer distinct layouts says little about a ranking."""
TIE = 1e-9
"""Predictions that differ by less, relatively, rank alike, in whatever order the rows come."""


@dataclass(frozen=True)
class Candidate:
    """Where a measured run stands: runs of one sweep differ in nothing but their layout.

    Attributes:
        sweep: source, device, precision, stack, model, sequence, devices and global batch, whatever they are.
        name: the sweep in words.
        layout: how the work was divided.
    """

    sweep: object
    name: str
    layout: object

    @classmethod
    def of(cls, run: Run) -> Candidate:
        """Of a row."""
        job, cluster, stack = run.job, run.cluster, run.stack
        name = (
            f"{run.architecture.name}, {cluster.count} {cluster.device.name}, {job.precision}, "
            f"{job.global_batch_sequences} x {job.seq_len}, {stack.name} {stack.attention} {stack.fusion}"
        )
        same = (run.source, run.architecture, job, cluster.device.name, cluster.count, stack, run.techniques)
        return cls(same, name, run.layout)


@dataclass(frozen=True)
class Choice:
    """How well the layouts of one sweep are ranked.

    Attributes:
        source, sweep: which rows.
        n: distinct layouts; those measured more than once count with their median.
        regret: how far the throughput of the layout ranked first falls below the best measured; the mean of those
            that are ranked first together.
        spearman: rank correlation of predicted and measured (Spearman 1904); None where either is constant.
    """

    source: str
    sweep: str
    n: int
    regret: float
    spearman: float | None

    def json(self) -> dict[str, Any]:
        """One entry of ``choice``."""
        return {
            "source": self.source,
            "sweep": self.sweep,
            "n": self.n,
            "regret": self.regret,
            "spearman": self.spearman,
        }


def choices(scored: Iterable[Scored]) -> list[Choice]:
    """The sweeps of `MIN_LAYOUTS` layouts or more, in order of appearance."""
    sweeps: dict[object, list[Scored]] = {}
    for item in scored:
        if item.candidate is not None:
            sweeps.setdefault(item.candidate.sweep, []).append(item)
    found = []
    for items in sweeps.values():
        layouts: dict[object, list[Scored]] = {}
        for item in items:
            assert item.candidate is not None
            layouts.setdefault(item.candidate.layout, []).append(item)
        if len(layouts) < MIN_LAYOUTS or items[0].candidate is None:
            continue
        predicted = [float(np.median([item.predicted for item in same])) for same in layouts.values()]
        measured = [float(np.median([item.measured for item in same])) for same in layouts.values()]
        ranked_first = np.isclose(predicted, min(predicted), rtol=TIE, atol=0.0)
        regret = float(np.mean(1.0 - min(measured) / np.array(measured)[ranked_first]))
        name = items[0].candidate.name
        found.append(Choice(items[0].source, name, len(layouts), regret, rank_correlation(predicted, measured)))
    return found


def choice_alike(found: Iterable[Choice]) -> dict[str, tuple[int, float, float]]:
    """By source: sweeps, mean regret, mean rank correlation."""
    by_source: dict[str, list[Choice]] = {}
    for choice in found:
        by_source.setdefault(choice.source, []).append(choice)
    return {
        source: (
            len(items),
            float(np.mean([item.regret for item in items])),
            _mean([item.spearman for item in items if item.spearman is not None]),
        )
        for source, items in by_source.items()
    }


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's, of positive values; those that tie share the mean of their ranks."""
    from scipy.stats import rankdata

    a, b = (rankdata(np.round(np.log(values) / TIE)) for values in (first, second))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
