"""Latencies of requests that were really served, in the form that the simulator's have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from froude.runtime.engine.replay import Log
from froude.serving.metrics import Latencies, summary

METRICS = ("ttft", "tpot", "e2e")


def measured(times: Iterable[tuple[float, float, float, int]]) -> Latencies:
    """From arrival, first token and last token of each request, on one clock in seconds, and its output tokens."""
    arrival, first, last, tokens = np.array(list(times), dtype=np.float64).reshape(-1, 4).T
    later = np.where(tokens > 1, tokens - 1, np.nan)
    return Latencies(arrival, first - arrival, (last - first) / later, last - arrival, np.arange(len(arrival)))


def logged(log: Log) -> Latencies:
    """Of the requests that a replay finished."""
    return measured(
        (request.arrival_s, request.token_s[0], request.token_s[-1], len(request.token_s))
        for request in log.requests.values()
        if request.finished
    )


def summaries(latencies: Latencies) -> dict[str, Any]:
    """Mean and quantiles of each metric."""
    return {f"{metric}_s": summary(getattr(latencies, f"{metric}_s")) for metric in METRICS}


def busy_span_s(latencies: Latencies) -> float:
    """From the first arrival to the last token."""
    return float((latencies.arrival_s + latencies.e2e_s).max() - latencies.arrival_s.min())
