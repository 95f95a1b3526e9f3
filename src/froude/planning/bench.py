"""What Froude itself costs: the figures behind ``froude bench``.

CPU seconds, since machines are shared: what a figure costs when something else runs beside it is not its own. Every
figure of the serving simulator stands beside the stepping reference on the first requests of the same load, in the
same run, and says whether both found the same times.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from froude.core.errors import InvalidValueError
from froude.serving.api import run_deployment
from froude.serving.deployment import Deployment, build_deployment
from froude.serving.load import make_load
from froude.training.api import plan_train, simulate_train
from froude.workloads.trace import Trace

AZURE, AZURE_STAND_IN = "AzureLLMInferenceTrace_2023_conv.csv.gz", "lognormal:in=1155,out=211,cv=1"
MOONCAKE, MOONCAKE_STAND_IN = "mooncake_conversation_trace.jsonl.gz", "sessions:n=12031,turns=3,in=4000,out=343"
MODEL, DEVICE = "llama-3.1-8b", "h100-sxm"


@dataclass(frozen=True)
class ServeCase:
    """A load on a deployment, and how many of its requests the stepping reference gets."""

    name: str
    trace: str
    rate: float | None
    requests: int | None
    stepped: int
    replicas: int = 1
    repeats: int = 3
    deployment: dict[str, Any] = field(default_factory=dict)


SERVE_CASES = (
    ServeCase("azure10k_1rps", AZURE, 1.0, 10_000, 500),
    ServeCase("azure10k_20rps", AZURE, 20.0, 10_000, 1000),
    ServeCase("azure10k_15rps_tight_cache", AZURE, 15.0, 10_000, 500, deployment={"gpu_memory_utilization": 0.3}),
    ServeCase(
        "mooncake_8_workers_prefix_aware",
        MOONCAKE,
        None,
        None,
        200,
        replicas=8,
        deployment={"router": "prefix-aware", "prefix_cache": True},
    ),
    ServeCase("replicas_8", AZURE, 80.0, 20_000, 400, replicas=8),
    ServeCase("replicas_64", AZURE, 640.0, 20_000, 400, replicas=64),
)
MILLION = ServeCase("million", AZURE, 15.0, 1_000_000, 1000, repeats=1)


def bench_serve(
    traces: str | os.PathLike[str] | None = None,
    *,
    million: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Speed of the serving simulator.

    Args:
        traces: folder with the published Azure and Mooncake traces, plain names as published; without it synthetic
            loads of the same means stand in for them.
        million: also a million requests, in a process of its own so that its peak of memory is its own.
        progress: told the name of each case as it begins.
    """
    folder = None if traces is None else Path(traces)
    if folder is not None and not folder.is_dir():
        raise InvalidValueError("traces", str(folder), "is no folder; give the one with the published traces")
    cases: dict[str, Any] = {}
    for case in SERVE_CASES:
        progress(case.name)
        cases[case.name] = measure_serve(case, folder)
    if million:
        progress(MILLION.name)
        cases[MILLION.name] = _in_own_process(MILLION, folder)
    progress("command")
    per_request = {n: cases[f"replicas_{n}"]["cpu_s"] / cases[f"replicas_{n}"]["requests"] for n in (8, 64)}
    found: dict[str, Any] = {
        "cases": cases,
        "replicas_64_over_8_cost_per_request": per_request[64] / per_request[8],
        "command_cpu_s": _command_cpu_s(_source(AZURE, folder)),
    }
    if million:
        ten_thousand = cases["azure10k_20rps"]
        found["million_cpu_s"] = cases["million"]["cpu_s"]
        found["million_peak_rss_bytes"] = cases["million"]["peak_rss_bytes"]
        found["million_over_10k_cost_per_request"] = (cases["million"]["cpu_s"] / cases["million"]["requests"]) / (
            ten_thousand["cpu_s"] / ten_thousand["requests"]
        )
    return found


def measure_serve(case: ServeCase, folder: Path | None) -> dict[str, Any]:
    """Best of a few runs by jumping, then jumping and stepping on the first requests."""
    built = build_deployment(
        MODEL, f"{DEVICE}:{case.replicas}", replicas=case.replicas, **{"router": "least-outstanding", **case.deployment}
    )
    source = _source(case.trace, folder)
    load = make_load(source, rate=case.rate, requests=case.requests)
    cpu_s = wall_s = float("inf")
    for _ in range(case.repeats):
        took, result = _timed(built, load)
        if took < cpu_s:
            cpu_s, wall_s = took, result.sim_wall_s
    outcome = result.outcome
    row = {
        "trace": source,
        "requests": len(load),
        "tokens": int(load.input_tokens.sum() + load.output_tokens.sum()),
        "replicas": case.replicas,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
        "requests_per_cpu_s": len(load) / cpu_s,
        "iterations": outcome.iterations,
        "preemptions": sum(outcome.preemptions),
        "prefix_hit_rate": outcome.hit_tokens / max(1, outcome.asked_tokens),
    }
    part = load.first(min(case.stepped, len(load)))
    jump_cpu_s, jumped = _timed(built, part)
    step_cpu_s, stepped = _timed(built, part, stepping=True)
    row["reference"] = {
        "requests": len(part),
        "step_cpu_s": step_cpu_s,
        "jump_cpu_s": jump_cpu_s,
        "speedup": step_cpu_s / jump_cpu_s,
        "equal": (jumped.outcome.first_ps, jumped.outcome.finish_ps)
        == (stepped.outcome.first_ps, stepped.outcome.finish_ps),
    }
    return row


def _timed(built: Deployment, load: Trace, stepping: bool = False) -> tuple[float, Any]:
    start = time.process_time()
    result = run_deployment(built, load, stepping=stepping)
    return time.process_time() - start, result


def _source(trace: str, folder: Path | None) -> str:
    if folder is None:
        return AZURE_STAND_IN if trace == AZURE else MOONCAKE_STAND_IN
    return str(folder / trace)


def _in_own_process(case: ServeCase, folder: Path | None) -> dict[str, Any]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_with_peak, case, folder).result()


def _measure_with_peak(case: ServeCase, folder: Path | None) -> dict[str, Any]:
    return {**measure_serve(case, folder), "peak_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """Most memory this process has held. ``ru_maxrss`` would include what the parent held before the fork."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def _command_cpu_s(trace: str, repeats: int = 3) -> float:
    """The whole command, from the start of Python to the printed JSON: best of a few runs.

    The first, uncounted, run compiles the modules, as an installation does: a checkout that may not write bytecode
    (``PYTHONDONTWRITEBYTECODE``) compiles them at every start, which is not the command's own cost.
    """
    call = [sys.executable, "-m", "froude.cli", "simulate", "serve", "--model", MODEL, "--cluster", f"{DEVICE}:1"]
    call += ["--trace", trace, "--rate", "1", "--requests", "10000", "--json"]
    took = []
    with tempfile.TemporaryDirectory() as bytecode:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = bytecode
        for _ in range(1 + repeats):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(call, check=True, capture_output=True, env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took[1:])


def bench_train() -> dict[str, Any]:
    """The search for Llama-3.1-70B on 1,024 H100; and its best layout over arrays against by events."""
    job: dict[str, Any] = {"seq_len": 8192, "global_batch_tokens": 8_388_608}
    start, wall = time.process_time(), time.perf_counter()
    found = plan_train("llama-3.1-70b", "h100-sxm:1024", **job)
    cpu_s, wall_s = time.process_time() - start, time.perf_counter() - wall
    best = found.plans[0]
    start = time.process_time()
    step = simulate_train(best.plan)
    play_cpu_s = time.process_time() - start
    numbers = found.json()
    return {
        "search_cpu_s": cpu_s,
        "search_wall_s": wall_s,
        "evaluated": numbers["evaluated"],
        "layouts_per_cpu_second": numbers["evaluated"] / cpu_s,
        "play_cpu_s": play_cpu_s,
        "evaluate_step_s": step.prediction.step_s,
        "play_step_s": step.played_step_s,
    }
