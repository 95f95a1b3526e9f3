"""Serving for real: replay a trace through the engine, and check what the simulator says about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from froude import __version__
from froude.core.errors import FroudeError
from froude.models.architecture import Architecture
from froude.runtime.engine.cache import BlockPool
from froude.runtime.engine.calibration import Measured
from froude.runtime.engine.check import RequestsCheck, check_run, read_meta
from froude.runtime.engine.clock import CLOCKS
from froude.runtime.engine.engine import Engine
from froude.runtime.engine.latencies import logged, summaries
from froude.runtime.engine.probe import compositions, probe
from froude.runtime.engine.published import check_published
from froude.runtime.engine.record import write_run
from froude.runtime.engine.replay import PS, Arrival, Log, replay
from froude.runtime.engine.spec import ServeSpec
from froude.runtime.models.llama import Llama, check_runnable
from froude.runtime.models.load import architecture_of, load_model
from froude.serving.metrics import Latencies
from froude.serving.policy import Sequence
from froude.workloads.readers import load_trace
from froude.workloads.trace import Ints, Trace

_FLOAT_BYTES = 4
Progress = Callable[[str, float], None]
"""What is going on, and how much of it is done (0 to 1)."""


@dataclass(frozen=True, slots=True)
class ServeRun:
    """A replay that was done and written to ``out``."""

    out: Path
    log: Log
    latencies: Latencies

    def json(self) -> dict[str, Any]:
        """As `froude run serve --json` prints it."""
        requests = self.log.requests.values()
        return {
            "requests": len(requests),
            "completed": sum(request.finished for request in requests),
            "interrupted": self.log.interrupted,
            "duration_s": self.log.duration_s,
            **summaries(self.latencies),
            "output_tokens_per_s": self.log.output_tokens / self.log.duration_s if self.log.duration_s else None,
            "preemptions": sum(request.preemptions for request in requests),
            "iterations": len(self.log.iterations),
            "out": str(self.out),
        }


def run_serve(spec: ServeSpec, on_progress: Progress | None = None) -> ServeRun:
    """Replay the spec's requests in real time and write the run to its folder.

    Iterations are timed for the calibration just before and just after the replay. Ctrl-C ends the replay; what was
    finished is written.

    Raises:
        FroudeError: before anything is computed or written, when something in the spec cannot be.
    """
    say = on_progress or (lambda what, done: None)
    architecture = architecture_of(spec.model)
    trace = _trace(spec)
    _check_memory(architecture, spec)
    scheduler = spec.make_scheduler()
    torch.set_num_threads(spec.threads)
    say("loading the model", 0.0)
    model = load_model(spec.model, spec.seed)
    pool = BlockPool(architecture, spec.kv_blocks, spec.block_tokens)
    engine = Engine(model, scheduler, pool)
    arrivals = _arrivals(trace, architecture.vocab, spec.seed)
    for arrival in arrivals:
        engine.check(arrival.sequence)
    before = _probe(model, pool, spec, trace, 0, say)
    log = replay(
        engine,
        arrivals,
        clock=CLOCKS[spec.clock],
        concurrency=spec.concurrency,
        on_progress=lambda complete, now_s: say(f"serving, {complete} of {len(arrivals)}", complete / len(arrivals)),
    )
    after = [] if log.interrupted else _probe(model, pool, spec, trace, 1, say)
    meta = {
        "engine": "froude",
        "froude_version": __version__,
        "torch_version": torch.__version__,
        "model": architecture.name,
        "scheduler": spec.scheduler,
        "engine_kwargs": {
            "max_num_seqs": spec.max_seqs,
            "max_num_batched_tokens": spec.chunk_tokens,
            "block_size": spec.block_tokens,
            "num_gpu_blocks_override": spec.kv_blocks,
            "dtype": "float32",
            "seed": spec.seed,
        },
        "dataset_path": spec.trace,
        "spec": spec.model_dump(mode="json", exclude_none=True),
    }
    out = Path(spec.out)
    write_run(out, log, meta, before, after)
    spec.write(out / "spec.yaml")
    return ServeRun(out, log, logged(log))


def check_requests(
    run_dir: str | os.PathLike[str],
    calibrated_on: str | os.PathLike[str] | None = None,
    cluster: str | None = None,
) -> RequestsCheck:
    """Predicted against measured, request by request.

    Args:
        run_dir: a folder that `run_serve` wrote, or a recorded run of vLLM in the same form.
        calibrated_on: for a run of the engine: another one, whose calibration predicts it; its own unless given.
        cluster: for a run of vLLM: the devices it ran on, unless its folder says so.
    """
    folder = Path(run_dir)
    meta = read_meta(folder / "meta.json")
    if "spec" in meta:
        return check_run(folder, meta, Path(calibrated_on) if calibrated_on is not None else None)
    return check_published(folder, meta, cluster)


def _trace(spec: ServeSpec) -> Trace:
    trace = load_trace(spec.trace, spec.seed, spec.requests)
    trace = replace(
        trace,
        input_tokens=_scaled(trace.input_tokens, spec.length_scale),
        output_tokens=_scaled(trace.output_tokens, spec.length_scale),
    )
    return trace.at_rate(spec.rate, spec.seed) if spec.rate is not None else trace


def _scaled(tokens: Ints, factor: float) -> Ints:
    return np.maximum(1, np.rint(tokens * factor)).astype(np.int64)


def _arrivals(trace: Trace, vocab: int, seed: int) -> list[Arrival]:
    """Prompts of random tokens: what they say does not matter to time."""
    rng = np.random.default_rng(seed)
    return [
        Arrival(
            Sequence(call.id, round(call.arrival_s * PS), call.input_tokens, call.output_tokens),
            rng.integers(vocab, size=call.input_tokens).tolist(),
        )
        for call in trace.calls()
    ]


def _probe(model: Llama, pool: BlockPool, spec: ServeSpec, trace: Trace, seed: int, say: Progress) -> list[Measured]:
    if not spec.calibration_s:
        return []
    longest = int((trace.input_tokens + trace.output_tokens).max())
    chunk = min(spec.chunk_tokens, int(trace.input_tokens.max()))
    todo = compositions(spec.max_seqs, chunk, longest, spec.kv_blocks * spec.block_tokens, seed)
    half_s, clock = spec.calibration_s / 2, CLOCKS[spec.clock]
    return probe(model, pool, todo, half_s, clock, lambda done: say("calibrating", done))


def _check_memory(architecture: Architecture, spec: ServeSpec) -> None:
    """Refuse what cannot fit, before anything is allocated."""
    import psutil

    check_runnable(architecture)
    cache_tokens = spec.kv_blocks * spec.block_tokens
    weights = architecture.parameters * _FLOAT_BYTES
    needed = weights + cache_tokens * architecture.kv_bytes_per_token(_FLOAT_BYTES)
    free = psutil.virtual_memory().available
    if needed > free:
        raise FroudeError(
            f"model: {architecture.name!r} with {spec.kv_blocks} kv_blocks needs {needed / 2**30:.1f} GiB; "
            f"this machine has {free / 2**30:.1f} GiB free"
        )
