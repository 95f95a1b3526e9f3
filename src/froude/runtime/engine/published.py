"""Runs of vLLM that others recorded (`requests.jsonl`, `meta.json`), against the simulator without any calibration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.errors import FroudeError
from froude.runtime.engine.check import RequestsCheck
from froude.serving.api import simulate_serve
from froude.serving.metrics import Latencies
from froude.workloads.readers import load_trace


def check_published(run_dir: Path, meta: dict[str, Any], cluster: str | None = None) -> RequestsCheck:
    """Simulate the recorded arrivals on the devices of the run.

    Args:
        run_dir: the folder.
        meta: its `meta.json`.
        cluster: the devices; by default those that a `config.json` of LLMServingSim names beside it.

    Raises:
        FroudeError: when the folder does not say what was run where.
    """
    kwargs = meta["engine_kwargs"]
    try:
        tensor_parallel = int(kwargs.get("tensor_parallel_size", 1))
        chunk_tokens, max_seqs = int(kwargs["max_num_batched_tokens"]), int(kwargs["max_num_seqs"])
        model = str(meta["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise FroudeError(f"{run_dir / 'meta.json'}: does not say how vLLM was run ({error})") from None
    trace = load_trace(str(run_dir))
    if trace.measured is None:
        raise FroudeError(f"{run_dir / 'requests.jsonl'}: has no times of first and last tokens")
    found = simulate_serve(
        model,
        cluster or _recorded_cluster(run_dir),
        trace,
        tensor_parallel=tensor_parallel,
        chunk_tokens=chunk_tokens,
        max_seqs=max_seqs,
    )
    measured = Latencies(
        trace.arrival_s,
        trace.measured["ttft_s"],
        np.where(trace.output_tokens > 1, trace.measured["tpot_s"], np.nan),
        trace.measured["e2e_s"],
        np.arange(len(trace)),
    )
    if len(found.latencies.request) < len(trace):
        raise FroudeError(f"{run_dir}: {len(trace) - len(found.latencies.request)} requests do not fit the cache")
    return RequestsCheck(
        found.latencies,
        measured,
        output_tokens=int(trace.output_tokens.sum()),
        assumptions=found.assumptions,
        warnings=found.warnings,
    )


def _recorded_cluster(run_dir: Path) -> str:
    try:
        config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        instance = config["nodes"][0]["instances"][0]
        return f"{instance['hardware']}:{instance['num_npus']}"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        raise FroudeError(f"cluster: {run_dir} does not name its devices; give --cluster") from None
