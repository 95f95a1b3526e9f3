"""Predictions against measured serving runs: time to first token, time per output token, end to end, output throughput.

Rows of one run share a simulation. A closed loop runs a few requests per client, enough for it to settle; settings
that a row leaves blank come from ``source_defaults.toml``.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from froude.core.errors import FroudeError
from froude.core.measurements import Skipped, Unusable, read_rows
from froude.machines.cluster import Cluster
from froude.machines.device import find_device
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.serving.accuracy import serve_spread
from froude.serving.api import run_deployment
from froude.serving.deployment import Deployment, build_deployment
from froude.serving.scores import Scored, ServeCheck
from froude.workloads.trace import Trace, make_trace

COLUMNS = (
    "id", "source", "engine", "model", "weight_dtype", "kv_dtype", "n_gpus", "tp", "pp", "dp", "ep", "isl", "osl",
    "concurrency_or_rate", "metric", "value", "notes", "device",
)  # fmt: skip
METRICS = {
    "ttft_ms": "ttft_ms",
    "tpot_ms": "tpot_ms",
    "e2e_ms": "e2e_ms",
    "output_tokens_per_s": "output_tokens_per_s",
    "tokens_per_s_per_gpu": "output_tokens_per_s",
}
"""Metric of a row -> what it is compared as."""
_SPREAD = {"ttft_ms": "ttft", "tpot_ms": "tpot", "e2e_ms": "e2e", "output_tokens_per_s": "throughput"}

ROUNDS = 5
"""Requests each client of a closed loop sends where the source does not say: the first wave starts together."""
BLOCK_TOKENS = 16
MOST_REQUESTS = 10240
RATE_REQUESTS = 600

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Run:
    """One measured configuration, as Froude can express it.

    Attributes:
        model, device, engine: names.
        precision, kv_dtype: of weights and cache.
        tensor_parallel, data_parallel, expert_parallel: the replica.
        chunk_tokens, max_seqs: limits of the engine.
        input_tokens, output_tokens: lengths, or their upper ends.
        spread: lengths are drawn between this share of them and them; 1 is constant.
        peer_to_peer: devices on PCIe reach each other's memory.
        prompts: different prompts there are, found again in the cache; 0 when all differ.
        load: ("closed", clients), ("batch", requests), ("rate", requests per second) or ("full", 0).
        requests: how many were sent at a rate; 0 where the row does not say.
        rounds: requests that each client of a closed loop sends.
        stream_tokens: tokens of a streamed chunk; the client sees its first token with the first chunk.
        poll_iterations: the engine looks for new requests once in so many iterations.
        batch_wait_iterations: how long the engine lets a request wait for others to share its prompt's iteration with.
    """

    model: str
    device: str
    engine: str
    precision: str
    kv_dtype: str
    tensor_parallel: int
    data_parallel: int
    expert_parallel: int
    chunk_tokens: int
    max_seqs: int
    input_tokens: int
    output_tokens: int
    spread: float
    load: tuple[str, float]
    peer_to_peer: bool = False
    prompts: int = 0
    requests: int = 0
    rounds: int = ROUNDS
    stream_tokens: int = 1
    poll_iterations: int = 1
    batch_wait_iterations: int = 0

    @property
    def devices(self) -> int:
        """Devices of the replica."""
        return self.tensor_parallel * self.data_parallel

    @property
    def wait_iterations(self) -> float:
        """How long a request waits on average before the engine takes it up.

        It comes at any moment between two looks; then it waits for others, as long as may be if it is the first, half
        as long if it is one of those that come meanwhile.
        """
        longest = float(self.batch_wait_iterations)
        followers = longest * self.load[1] / self.output_tokens if self.load[0] == "closed" else 0.0
        return (self.poll_iterations - 1) / 2 + longest * (1.0 + followers / 2) / (1.0 + followers)


@dataclass(frozen=True)
class Predicted:
    """What a run is predicted to measure: means over its requests."""

    ttft_ms: float
    tpot_ms: float
    e2e_ms: float
    output_tokens_per_s: float


def check_serve(path: str | os.PathLike[str], on_progress: Progress | None = None) -> ServeCheck:
    """Predict every usable row of a table of measured serving runs, and compare.

    Args:
        path: a CSV file with the columns of `COLUMNS`.
        on_progress: told what is going on and how much of it is done (0 to 1).

    Raises:
        FroudeError: when the file cannot be read or lacks columns.
    """
    rows = read_rows(path, COLUMNS)
    known: dict[Run, Predicted | str] = {}
    scored: list[Scored] = []
    skipped: list[Skipped] = []
    for done, cells in enumerate(rows):
        if on_progress is not None:
            on_progress("simulating", done / len(rows))
        try:
            run = run_of(cells)
            if run not in known:
                known[run] = _outcome(run)
            found = known[run]
            if isinstance(found, str):
                raise Unusable(found)
        except (Unusable, FroudeError) as reason:
            skipped.append(Skipped(str(cells["id"]), str(reason)))
            continue
        scored.append(scored_row(cells, run, found, run.devices))
    return ServeCheck(len(rows), tuple(scored), tuple(skipped))


def scored_row(cells: Mapping[str, Any], run: Run, found: Predicted, devices: int) -> Scored:
    """A row beside its prediction."""
    metric = METRICS[cells["metric"]]
    each = devices if cells["metric"] == "tokens_per_s_per_gpu" else 1
    cell = "|".join(str(cells[column]) for column in ("model", "device", "engine"))
    spread = serve_spread(_SPREAD[metric], resolve(run.model), find_device(run.device))
    value = float(cells["value"]) * each
    return Scored(str(cells["id"]), cell, metric, getattr(found, metric), value, spread)


def run_of(cells: Mapping[str, Any]) -> Run:
    """The run that a row describes.

    Raises:
        Unusable: when the row itself, or what Froude can express, does not allow it.
    """
    notes = str(cells["notes"] or "")
    if cells["metric"] not in METRICS:
        raise Unusable(f"metric {cells['metric']} is not compared")
    if "wip=True" in notes:
        raise Unusable("marked as work in progress")
    if re.match(r"p\d+\b", notes):
        raise Unusable("a percentile over lengths that the row does not state")
    if str(cells["tp"]).startswith("P"):
        raise Unusable("disaggregated prefill and decoding")
    failed = re.search(r"\bn=(\d+) fail=(\d+)", notes)
    if failed and int(failed.group(2)) > int(failed.group(1)):
        raise Unusable("most requests failed")
    if not cells["isl"] or not cells["osl"]:
        raise Unusable("lengths are not stated")
    arch = resolve(str(cells["model"]))
    device = find_device(str(cells["device"])).name
    default = _default(cells, device)
    tensor, data, expert = _layout(cells, notes, arch, default)
    limits = dict(re.findall(r"max_num_(seqs|batched_tokens)=(\d+)", notes))
    return Run(
        model=arch.name,
        device=device,
        engine=default["use"],
        precision=_precision(cells, str(cells["model"])),
        kv_dtype=str(default.get("kv_dtype", "auto")),
        tensor_parallel=tensor,
        data_parallel=data,
        expert_parallel=expert,
        chunk_tokens=int(limits.get("batched_tokens", default["chunk_tokens"])),
        max_seqs=int(limits.get("seqs", _most_seqs(notes, data, default))),
        input_tokens=round(float(cells["isl"])),
        output_tokens=round(float(cells["osl"])),
        spread=float(default.get("spread", 1.0)),
        load=_load(str(cells["concurrency_or_rate"] or ""), notes, data, int(default.get("more_clients", 0))),
        peer_to_peer=bool(default.get("peer_to_peer", False)),
        prompts=_prompts(notes) if default.get("shared_prompts") else 0,
        requests=int(failed.group(1)) if failed else 0,
        rounds=int(default.get("rounds", ROUNDS)),
        stream_tokens=int(default.get("stream_tokens", 1)),
        poll_iterations=int(default.get("poll_iterations", 1)),
        batch_wait_iterations=int(
            default.get("data_parallel_wait_iterations", 0) if data > 1 else default.get("batch_wait_iterations", 0)
        ),
    )


def predict(run: Run) -> Predicted:
    """Simulate one run."""
    built = _deployment(
        run.model,
        run.device,
        run.engine,
        run.precision,
        run.kv_dtype,
        (run.tensor_parallel, run.data_parallel, run.expert_parallel),
        run.chunk_tokens,
        run.max_seqs,
        run.peer_to_peer,
        bool(run.prompts),
    )
    client = {"stream_tokens": run.stream_tokens, "wait_iterations": run.wait_iterations}
    built = replace(built, engine=built.engine.model_copy(update=client))
    load, concurrency = trace_of(run, built)
    found = run_deployment(built, load, concurrency=concurrency)
    latencies = found.latencies
    outputs = float(load.output_tokens[latencies.request].sum())
    return Predicted(
        1e3 * float(np.mean(latencies.ttft_s)),
        1e3 * float(np.nanmean(latencies.tpot_s)) if run.output_tokens > 1 else 0.0,
        1e3 * float(np.mean(latencies.e2e_s)),
        outputs / found.duration_s,
    )


def _outcome(run: Run) -> Predicted | str:
    try:
        return predict(run)
    except FroudeError as reason:
        return str(reason)


@functools.lru_cache(maxsize=64)
def _deployment(
    model: str,
    device: str,
    engine: str,
    precision: str,
    kv_dtype: str,
    layout: tuple[int, int, int],
    chunk_tokens: int,
    max_seqs: int,
    peer_to_peer: bool,
    prefix_cache: bool,
) -> Deployment:
    """Deployments keep their tables of times, so runs that differ in load only share one."""
    cluster = Cluster.parse({"device": device, "count": layout[0] * layout[1], "peer_to_peer": peer_to_peer})
    return build_deployment(
        model,
        cluster,
        engine=engine,
        precision=precision,
        kv_dtype=kv_dtype,
        tensor_parallel=layout[0],
        data_parallel=layout[1],
        expert_parallel=layout[2],
        chunk_tokens=max(chunk_tokens, max_seqs),
        max_seqs=max_seqs,
        prefix_cache=prefix_cache,
    )


def trace_of(run: Run, built: Deployment) -> tuple[Trace, int | None]:
    """The requests, and the clients of a closed loop."""
    kind, size = run.load
    if kind == "rate":
        return _lengths(run, run.requests or RATE_REQUESTS).at_rate(size, seed=0), None
    if kind == "batch":
        return _lengths(run, int(size)), None
    if kind == "closed":
        clients = int(size)
        return _lengths(run, min(max(run.rounds * clients, 8), max(MOST_REQUESTS, 2 * clients))), clients
    held = built.pool.tokens // (run.input_tokens + run.output_tokens)
    clients = max(1, min(held, built.scheduler.max_seqs))
    return _lengths(run, min(4 * clients, MOST_REQUESTS)), None


def _lengths(run: Run, count: int) -> Trace:
    rng = np.random.default_rng(0)

    def draw(longest: int) -> Any:
        return rng.integers(max(1, round(run.spread * longest)), longest + 1, count)

    shared: dict[str, Any] = {}
    if run.prompts:
        blocks = run.input_tokens // BLOCK_TOKENS
        users = (i % run.prompts * blocks for i in range(count))
        shared["prefix_ids"] = tuple(tuple(range(first, first + blocks)) for first in users)
        shared["prefix_block_tokens"] = BLOCK_TOKENS
    return make_trace("measured run", np.zeros(count), draw(run.input_tokens), draw(run.output_tokens), **shared)


def _prompts(notes: str) -> int:
    """System prompts times users of each: the same few questions are asked over and over."""
    counts = re.search(r"n_sys=(\d+) users/sys=(\d+)", notes)
    return int(counts.group(1)) * int(counts.group(2)) if counts else 0


def _most_seqs(notes: str, data_parallel: int, default: Mapping[str, Any]) -> int:
    """Sequences that the engine runs at once, where it was told to take no more than the batch of the notes."""
    batch = re.search(r"\bbs=(\d+)", notes) if default.get("capped_batch") else None
    return int(batch.group(1)) * data_parallel if batch else int(default["max_seqs"])


def _load(text: str, notes: str, data_parallel: int, more_clients: int) -> tuple[str, float]:
    for pattern, kind in ((r"c=(\d+)$", "closed"), (r"static batch=(\d+)$", "batch"), (r"rate=([\d.]+)", "rate")):
        match = re.match(pattern, text)
        if match:
            size = float(match.group(1))
            batch = re.search(r"\bbs=(\d+)", notes)  # of one group; clients may be those of several replicas
            if kind == "closed" and batch:
                size = min(size, float(batch.group(1)) * data_parallel)
            return kind, size + (more_clients if kind == "closed" else 0)
    if text.startswith("max load"):
        return "full", 0.0
    raise Unusable("load is not stated in a form that can be replayed")


def _layout(
    cells: Mapping[str, Any], notes: str, arch: Architecture, default: Mapping[str, Any]
) -> tuple[int, int, int]:
    """Tensor, data and expert parallelism.

    Where data parallelism is left blank, it follows from the devices of the experts, or from the share of the clients
    that one group takes.
    """
    tensor, pipeline = int(cells["tp"] or 1), int(cells["pp"] or 1)
    if pipeline > 1:
        raise Unusable("pipeline parallelism in serving is not modelled")
    data = int(cells["dp"] or 1)
    if arch.experts is None:
        return tensor, data, 1
    if default.get("attention_dp") and cells["ep"] is None and data == 1 and tensor > 1:
        return 1, tensor, tensor
    expert = int(cells["ep"] or 1)
    sliced = re.search(r"moe_tp=(\d+)", notes)
    batch = re.search(r"\bbs=(\d+)", notes)
    clients = re.match(r"c=(\d+)$", str(cells["concurrency_or_rate"]))
    shared = batch and clients and int(clients.group(1)) == int(batch.group(1)) * tensor
    if cells["dp"] is None and tensor > 1 and shared:
        return 1, tensor, expert
    if cells["dp"] is None and sliced:
        data = max(1, int(sliced.group(1)) * expert // tensor)
    return tensor, data, expert


def _precision(cells: Mapping[str, Any], model: str) -> str:
    defaults, label = _defaults(), str(cells["weight_dtype"] or "bf16")
    for entry in defaults["checkpoint"]:
        if model.startswith(entry["model"]) and entry.get("label", label) == label:
            return str(entry["weights"])
    if label not in defaults["weights"]:
        raise Unusable(f"weight type {label} is not known")
    return str(defaults["weights"][label])


def _default(cells: Mapping[str, Any], device: str) -> Mapping[str, Any]:
    """The first entry that the row matches in everything the entry names."""
    source, engine, model = (str(cells[column]) for column in ("source", "engine", "model"))
    clients = re.match(r"c=(\d+)$", str(cells["concurrency_or_rate"]))
    load = float(clients.group(1)) if clients else 0.0
    lengths = [float(cells["isl"] or 0), float(cells["osl"] or 0)]
    for entry in _defaults()["run"]:
        same = source.startswith(entry["source"]) and engine.startswith(entry["engine"])
        same = same and entry.get("model", "") in model and entry.get("device", "") in device
        same = same and entry.get("label", cells["weight_dtype"]) == cells["weight_dtype"]
        same = same and entry.get("lengths", lengths) == lengths and load >= entry.get("least_clients", 0)
        if same and int(cells["tp"] or 1) <= entry.get("most_tp", 1024):
            return dict(entry)
    raise Unusable(f"settings of {engine} in {source} are not known")


@functools.cache
def _defaults() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("source_defaults.toml").read_text("utf-8"))
