"""Latencies of the requests of a run, real or simulated."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from froude.core.arrays import Floats
from froude.runtime.engine.replay import PS, Log
from froude.serving.outcome import Outcome
from froude.serving.policy import Sequence

METRICS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds, request by request; ``tpot`` is not a number for requests of one token."""

    ttft: Floats
    tpot: Floats
    e2e: Floats
    output_tokens_per_s: float

    @classmethod
    def of(cls, arrival_s: Floats, first_s: Floats, last_s: Floats, output_tokens: npt.NDArray[np.int64]) -> Latencies:
        """From times on one clock."""
        later_tokens = np.where(output_tokens > 1, output_tokens - 1, np.nan)
        duration_s = float(last_s.max() - arrival_s.min()) if len(last_s) else np.nan
        return cls(
            first_s - arrival_s,
            (last_s - first_s) / later_tokens,
            last_s - arrival_s,
            float(output_tokens.sum()) / duration_s,
        )

    def summary(self) -> dict[str, Any]:
        """Mean and quantiles of each, as `froude simulate serve --json` prints them."""
        return {f"{metric}_s": _summary(getattr(self, metric)) for metric in METRICS}


def simulated(sequences: Items[Sequence], outcome: Outcome) -> Latencies:
    """Of a simulation."""
    arrival = np.array([s.arrival_ps for s in sequences], dtype=np.int64)
    first, last = (np.array(times, dtype=np.int64) for times in (outcome.first_ps, outcome.finish_ps))
    tokens = np.array([s.output_tokens for s in sequences], dtype=np.int64)
    return Latencies.of(arrival / PS, first / PS, last / PS, tokens)


def logged(log: Log) -> Latencies:
    """Of the requests that a replay finished."""
    finished = [request for request in log.requests.values() if request.finished]
    arrival, first, last = (
        np.array(times, dtype=np.float64)
        for times in (
            [request.arrival_s for request in finished],
            [request.token_s[0] for request in finished],
            [request.token_s[-1] for request in finished],
        )
    )
    return Latencies.of(arrival, first, last, np.array([len(request.token_s) for request in finished], dtype=np.int64))


def _summary(values: Floats) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return dict.fromkeys(("mean", "p50", "p90", "p99"), float("nan"))
    return {"mean": float(known.mean()), **{f"p{q}": float(np.percentile(known, q)) for q in (50, 90, 99)}}
