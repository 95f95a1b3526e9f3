"""The public function behind ``froude simulate serve``."""

from __future__ import annotations

import time as clock
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.errors import FroudeError, InvalidValueError, UnknownNameError
from froude.machines.cluster import Cluster, parse_cluster
from froude.machines.device import Device
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.serving.autoscaling import Autoscaling, ScalingRouter
from froude.serving.conductor import Conductor
from froude.serving.disaggregation import Transfer, parse_disaggregation, serve_disaggregated
from froude.serving.engine_spec import KV_DTYPES, EngineSpec, find_engine
from froude.serving.failures import Failures
from froude.serving.iteration import IterationTime
from froude.serving.kv_cache import Pool, size_pool
from froude.serving.metrics import PS, Latencies, parse_slo, summary
from froude.serving.migration import LiveMigration
from froude.serving.model_time import ModelIterationTime, check_parallel, check_pipeline, product_start_s
from froude.serving.outcome import Outcome, Swap, Worker
from froude.serving.pipeline_time import PipelineIterationTime
from froude.serving.policy import SCHEDULERS, Scheduler, Sequence
from froude.serving.power_cap import CappedTime, capped
from froude.serving.precision import find_precision
from froude.serving.router import ROUTERS, Router
from froude.serving.simulator import jump, jump_fleet, uncollected
from froude.serving.stepping import step, step_fleet
from froude.serving.technique import ServingContext, ServingTechnique
from froude.serving.technique import techniques as TECHNIQUES
from froude.serving.techniques.speculative import Speculative
from froude.timing.extra import said_of, with_kernels
from froude.timing.roofline import Roofline
from froude.workloads.readers import load_trace
from froude.workloads.trace import Trace

MEASURED_TOKENS = 32_768  # longest input and output among the measured runs of docs/accuracy.md


@dataclass(frozen=True)
class Deployment:
    """A model on machines under an engine: everything of a serving simulation but the load.

    Attributes:
        arch, cluster, engine: what runs, where, under which mechanisms.
        tensor_parallel, data_parallel: devices that attend to a request together; groups of them in one replica.
        expert_parallel: devices of a replica over which its experts are spread.
        pipeline_parallel: stages that its layers are spread over, each of ``tensor_parallel`` devices.
        replicas: how many replicas.
        scheduler, router: the policies.
        time: of one iteration of one replica.
        pool: cache of one replica.
        prefix_cache: prompts stay in the pool and are found again.
        autoscale: replicas come and go; ``replicas`` is the most there can be.
        migrate, failures: requests move between replicas as they run; replicas fail. The knobs of each, as text.
        swap: room in host memory for the cache of preempted sequences; None where they are computed again.
        power_cap_w: what a device may draw; its clock is lowered iteration by iteration.
        disaggregate: replicas that only compute prompts, and replicas that only generate; None where all do both.
    """

    arch: Architecture
    cluster: Cluster
    engine: EngineSpec
    tensor_parallel: int
    replicas: int
    scheduler: Scheduler
    router: str
    time: IterationTime
    pool: Pool
    prefix_cache: bool = False
    disaggregate: tuple[int, int] | None = None
    autoscale: Autoscaling | None = None
    data_parallel: int = 1
    expert_parallel: int = 1
    swap: Swap | None = None
    migrate: str | None = None
    failures: str | None = None
    pipeline_parallel: int = 1
    power_cap_w: float | None = None

    @property
    def worker(self) -> Worker:
        """One replica, as the simulator takes it."""
        return Worker(self.scheduler, self.time, self.pool.blocks, self.pool.block_tokens, self.swap)

    @property
    def devices(self) -> int:
        """Devices in use."""
        return self.tensor_parallel * self.data_parallel * self.pipeline_parallel * self.replicas


@dataclass(frozen=True)
class ServeResult:
    """What `simulate_serve` found."""

    deployment: Deployment
    trace: Trace
    outcome: Outcome
    slo: dict[str, float]
    arrival_ps: list[int] = field(repr=False)
    sim_wall_s: float
    stepped: bool
    moved: dict[str, float] = field(default_factory=dict)

    @cached_property
    def latencies(self) -> Latencies:
        """Request by request, as its client sees it."""
        inside = Latencies.of(self.outcome, self.arrival_ps, self.trace)
        engine = self.deployment.engine
        iteration_s = np.nan_to_num(inside.tpot_s)
        late_s = engine.request_s.value + iteration_s * (engine.wait_iterations + engine.overlap)
        later = self.trace.output_tokens[inside.request] - 1
        held_s = iteration_s * np.minimum(engine.stream_tokens - 1, later)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot_s = np.where(later > 0, inside.tpot_s - held_s / later, np.nan)
        return replace(inside, ttft_s=inside.ttft_s + late_s + held_s, tpot_s=tpot_s, e2e_s=inside.e2e_s + late_s)

    @property
    def duration_s(self) -> float:
        """From the start of the trace to the last token."""
        return max(self.outcome.finish_ps) / PS

    @property
    def peak_kv_utilisation(self) -> float:
        """Most of the cache of a replica in use at once."""
        return self.outcome.peak_blocks / self.deployment.pool.blocks

    @property
    def paid_s(self) -> float:
        """Time that replicas are paid for, all together."""
        return self.outcome.replica_ps / PS or self.deployment.replicas * self.duration_s

    @property
    def usd_per_hour(self) -> float | None:
        """Price of the devices in use, on average."""
        price = self.deployment.cluster.usd_per_device_hour
        each = self.deployment.devices / self.deployment.replicas
        return None if price is None else price * each * self.paid_s / self.duration_s

    @property
    def joules(self) -> float | None:
        """Energy of the devices in use."""
        busy_s = self.outcome.busy_ps / PS
        return self.deployment.time.joules(busy_s, self.paid_s - busy_s)

    def json(self) -> dict[str, Any]:
        """The command's contract."""
        found, duration_s = self.latencies, self.duration_s
        done = found.request
        outputs = int(self.trace.output_tokens[done].sum())
        inputs = int(self.trace.input_tokens[done].sum())
        usd, joules = self.usd_per_hour, self.joules
        return {
            "requests": len(self.trace),
            "completed": len(done),
            "rejected": self.outcome.rejected,
            "duration_s": duration_s,
            "sim_wall_s": self.sim_wall_s,
            "ttft_s": summary(found.ttft_s),
            "tpot_s": summary(found.tpot_s),
            "e2e_s": summary(found.e2e_s),
            "output_tokens_per_s": outputs / duration_s,
            "total_tokens_per_s": (inputs + outputs) / duration_s,
            "requests_per_s": len(done) / duration_s,
            "goodput_rps": float(found.meeting(self.slo).sum()) / duration_s,
            "slo": self.slo,
            "preemptions": sum(self.outcome.preemptions),
            "prefix_hit_rate": self.outcome.hit_tokens / max(1, self.outcome.asked_tokens),
            "peak_kv_utilisation": self.peak_kv_utilisation,
            "kv_cache_tokens": self.deployment.pool.tokens,
            "busy_fraction": self.outcome.busy_ps / PS / self.paid_s,
            "mean_replicas": self.paid_s / duration_s,
            "iterations": self.outcome.iterations,
            **self.moved,
            "usd_per_million_output_tokens": None if usd is None else usd * duration_s / 3600.0 / outputs * 1e6,
            "joules_per_output_token": None if joules is None else joules / outputs,
        }

    @property
    def assumptions(self) -> list[str]:
        """What the figures rest on."""
        d = self.deployment
        pool = d.pool
        return [
            f"{d.replicas} replica(s) of {d.arch.name} on {d.devices // d.replicas} x {d.cluster.device.name} each, "
            f"weights in {d.engine.precision}, "
            f"scheduler {d.scheduler.name}, at most {d.scheduler.max_seqs} sequences and "
            f"{d.scheduler.max_batched_tokens} tokens in an iteration",
            f"cache of {pool.blocks} blocks of {pool.block_tokens} tokens: {pool.memory_fraction:.0%} of "
            f"memory less {pool.weights_bytes / 1e9:.1f} GB of weights, {pool.activation_bytes / 1e9:.1f} GB of "
            f"activations and {pool.reserve_bytes / 1e9:.1f} GB in reserve (estimated)",
            f"host work per iteration {d.engine.step_s.value * 1e3:g} ms and {d.engine.sequence_s.value * 1e6:g} us "
            f"per sequence ({d.engine.step_s.source}; estimated)",
            *(
                [
                    f"replicas from {d.autoscale.least} to {d.autoscale.most} as {d.autoscale.scaler} says, "
                    f"ready {d.autoscale.start_s:g} s after they are asked for, and paid for from then"
                ]
                if d.autoscale
                else []
            ),
            *(
                [
                    f"{d.disaggregate[0]} replicas compute prompts, {d.disaggregate[1]} generate; prefill never waits "
                    "for decode, links run at their catalogue bandwidth"
                ]
                if d.disaggregate
                else []
            ),
            *(
                [
                    f"preempted requests leave up to {d.swap.host_blocks} blocks of cache in host memory; "
                    f"the engine waits {d.swap.block_ps / 1e6:.3g} us for each, either way"
                ]
                if d.swap
                else []
            ),
            *self._power(),
            *said_of(d.cluster),
            "every request generates exactly the tokens of the trace",
        ]

    def _power(self) -> list[str]:
        cap_w, time = self.deployment.power_cap_w, self.deployment.time
        energy = "energy is the accelerators' alone: the power limit while busy, idle power otherwise"
        if not isinstance(time, CappedTime):
            return [energy if cap_w is None else f"{energy}; the limit is {cap_w:g} W a device"]
        most = self.deployment.scheduler.max_batched_tokens
        clocks = f"{time.clock(1):.0%} of the sustained one for one token, {time.clock(most):.0%} for {most}"
        return [energy, f"devices may draw {cap_w:g} W each: their clock in an iteration is {clocks} (estimated)"]

    @property
    def warnings(self) -> list[str]:
        """What a reader should know before trusting the figures."""
        said = []
        if self.outcome.rejected:
            said.append(f"{self.outcome.rejected} request(s) can never fit the cache and were rejected")
        if self.deployment.prefix_cache and self.trace.prefix_ids is None:
            said.append("prefix cache: the trace has no prefix hashes, so nothing can be found again")
        if self.deployment.scheduler.clairvoyant:
            said.append(
                f"scheduler {self.deployment.scheduler.name} knows output lengths beforehand, as no engine does"
            )
        return [*said, *self._lengths(), *self._saturation()]

    def _lengths(self) -> list[str]:
        """Lengths that the model, or the comparison with measurements, does not reach."""
        said, arch = [], self.deployment.arch
        inputs, outputs = self.trace.input_tokens, self.trace.output_tokens
        beyond = int((inputs + outputs > arch.max_positions).sum())
        if beyond:
            said.append(
                f"lengths: {beyond} request(s) are longer than the {arch.max_positions} positions of {arch.name}; "
                "an engine refuses them"
            )
        far = float((np.maximum(inputs, outputs) > MEASURED_TOKENS).mean())
        if far:
            said.append(
                f"lengths: {far:.1%} of the requests have more than {MEASURED_TOKENS} tokens in or out, more than any "
                "measured run that iteration times were compared with"
            )
        return said

    def _saturation(self) -> list[str]:
        """Signs that the load is more than, or nearly all, that the deployment can take."""
        found = self.latencies
        if not self.trace.duration_s > 0 or len(found.request) < 2:
            return []
        late = float(np.mean((found.arrival_s + found.ttft_s)[:-1] > found.arrival_s[-1]))
        if late > 0.1:
            return [f"overload: {late:.0%} of the requests still waited when the last one arrived"]
        part = len(found.request) // 3
        if part < 30:
            return []
        # Not the first third, which finds an empty engine. A queue that grows steadily makes it 5/3.
        before, end = (float(np.median(found.ttft_s[some])) for some in (slice(part, -part), slice(-part, None)))
        if end > 1.4 * before:
            return [
                f"near saturation: the last third of the requests waited {end / before:.1f} times as long for a first "
                "token as those in the middle; on a longer trace they may wait longer still"
            ]
        return []


def build_deployment(
    model: str | Architecture,
    cluster: str | Cluster,
    *,
    engine: str = "vllm",
    scheduler: str | Scheduler | None = None,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    expert_parallel: int = 1,
    pipeline_parallel: int = 1,
    precision: str | None = None,
    kv_dtype: str | None = None,
    replicas: int = 1,
    disaggregate: str | None = None,
    autoscale: str | None = None,
    router: str = "least-outstanding",
    chunk_tokens: int | None = None,
    max_seqs: int | None = None,
    gpu_memory_utilization: float | None = None,
    prefix_cache: bool = False,
    swap_space: float | None = None,
    migrate: str | None = None,
    failures: str | None = None,
    speculative: str | None = None,
    techniques: Iterable[str | ServingTechnique] = (),
    power_cap: float | None = None,
    kernels: str = "fitted",
) -> Deployment:
    """A deployment from names.

    Raises:
        FroudeError: one sentence naming what cannot be.
    """
    arch = resolve(model) if isinstance(model, str) else model
    machines = parse_cluster(cluster) if isinstance(cluster, str) else cluster
    machines = with_kernels(machines, kernels, product_start_s(machines.device))
    spec = configured(find_engine(engine), machines.device, precision, kv_dtype)
    check_parallel(arch, tensor_parallel, data_parallel, expert_parallel)
    split = None
    if disaggregate is not None:
        split = parse_disaggregation(disaggregate)
        if replicas != 1:
            raise InvalidValueError("replicas", replicas, f"cannot be combined with disaggregate {disaggregate}")
        replicas = sum(split)
    scaling = None
    if autoscale is not None:
        scaling = Autoscaling.parse(autoscale)
        if replicas != 1:
            raise InvalidValueError("autoscale", autoscale, "cannot be combined with replicas or disaggregate")
        replicas = scaling.most
    if replicas < 1:
        raise InvalidValueError("replicas", replicas, "is not a number of replicas; the least is 1")
    check_pipeline(arch, pipeline_parallel, data_parallel)
    each = tensor_parallel * data_parallel * pipeline_parallel
    if each * replicas > machines.count:
        most = machines.count // each
        size = f"tp={tensor_parallel}" + (f", dp={data_parallel}" if data_parallel > 1 else "")
        size += f", pp={pipeline_parallel}" if pipeline_parallel > 1 else ""
        why = f"of {size} need {each * replicas} devices and the cluster has {machines.count}"
        raise InvalidValueError("replicas", replicas, f"{why}; at most {most} fit" if most else why)
    if gpu_memory_utilization is not None and not 0 < gpu_memory_utilization <= 1:
        raise InvalidValueError("gpu_memory_utilization", gpu_memory_utilization, "must lie between 0 and 1")
    if not isinstance(scheduler, Scheduler):
        knobs = {"max_batched_tokens": chunk_tokens, "max_seqs": max_seqs}
        given = {name: value for name, value in knobs.items() if value is not None}
        scheduler = SCHEDULERS.create(scheduler or spec.scheduler, **given)
    context = ServingContext(arch, machines, spec, Roofline(machines, spec.stack), tensor_parallel)
    chosen = [TECHNIQUES.create(t) if isinstance(t, str) else t for t in techniques]
    if speculative is not None:
        chosen.append(Speculative.parse(speculative))
    for technique in chosen:
        objection = technique.objection(context)
        if objection is not None:
            raise InvalidValueError("technique", technique.name, objection)
        scheduler = technique.rewrite_scheduler(scheduler, context)
    pool = size_pool(
        arch,
        machines.device,
        spec,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        pipeline_parallel=pipeline_parallel,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_seqs=scheduler.max_seqs,
        gpu_memory_utilization=gpu_memory_utilization,
    )
    whole = ModelIterationTime(arch, machines, spec, context.cost, tensor_parallel, data_parallel, expert_parallel)
    time: IterationTime = whole
    if power_cap is not None:
        if pipeline_parallel > 1:
            raise InvalidValueError("power_cap", power_cap, f"cannot be combined with pp={pipeline_parallel}; pp=1 can")
        time = capped(whole, power_cap)
    if pipeline_parallel > 1:
        time = PipelineIterationTime(whole, pipeline_parallel)
        # The engine's budget is of one micro-batch.
        scheduler = copy(scheduler)
        scheduler.max_batched_tokens *= pipeline_parallel
    for technique in chosen:
        pool = technique.rewrite_pool(pool, context)
        time = technique.rewrite_time(time, context)
    ROUTERS.get(router)
    for name, asked in (("migrate", migrate), ("failures", failures)):
        if asked is None:
            continue
        if split is not None or scaling is not None or (migrate is not None and failures is not None):
            raise InvalidValueError(name, asked, "cannot be combined with disaggregate, autoscale, migrate or failures")
        if name == "migrate" and (prefix_cache or swap_space is not None or replicas < 2):
            why = "needs several replicas, without prefix cache or swap space"
            raise InvalidValueError(name, asked, why)
    built = Deployment(
        arch,
        machines,
        spec,
        tensor_parallel,
        replicas,
        scheduler,
        router,
        time,
        pool,
        prefix_cache,
        split,
        scaling,
        data_parallel,
        expert_parallel,
        None if swap_space is None else _swap(swap_space, pool, machines.device),
        migrate,
        failures,
        pipeline_parallel,
        power_cap,
    )
    conductor_of(built)
    return built


def conductor_of(built: Deployment) -> Conductor | None:
    """Who moves requests between the replicas of a deployment; a new one for each run.

    Raises:
        FroudeError: naming what is wrong with its knobs.
    """
    if built.failures is not None:
        return Failures.parse(built.failures)
    return None if built.migrate is None else LiveMigration.parse(built.migrate, kv_transfer(built))


def _swap(gibibytes: float, pool: Pool, device: Device) -> Swap:
    """Every device copies its own part of a block over its own link to the host."""
    if not gibibytes > 0:
        raise InvalidValueError("swap_space", gibibytes, "is no amount of memory; give GiB a device")
    if not device.host_bandwidth > 0:
        raise InvalidValueError("swap_space", device.name, "has no link to host memory in the catalogue")
    block_bytes = pool.bytes_per_token * pool.block_tokens
    return Swap(int(gibibytes * 2**30 // block_bytes), round(block_bytes / device.host_bandwidth * PS))


def configured(engine: EngineSpec, device: Device, precision: str | None, kv_dtype: str | None) -> EngineSpec:
    """The engine with weights and cache in those formats, which the device must be able to read.

    Raises:
        FroudeError: for unknown formats, and 8-bit caches on devices without 8-bit arithmetic.
    """
    chosen = find_precision(precision or engine.precision)
    cache = kv_dtype or engine.kv_dtype
    if cache not in KV_DTYPES:
        raise UnknownNameError("kv_dtype", cache, KV_DTYPES)
    if cache == "auto" and "fp8" not in device.peak_flops:
        cache = "bf16"
    if cache not in ("auto", "bf16") and cache not in device.peak_flops:
        raise InvalidValueError("kv_dtype", cache, f"has no arithmetic on {device.name}; bf16 has")
    return engine.model_copy(update={"precision": chosen.name, "kv_dtype": cache})


def make_load(
    source: str | Path | Trace,
    *,
    rate: float | None = None,
    arrivals: str = "poisson",
    concurrency: int | None = None,
    time_scale: float | None = None,
    requests: int | None = None,
    seed: int = 0,
) -> Trace:
    """A trace with the arrivals asked for: its own (perhaps stretched), of a rate, or at once for a closed loop."""
    given = [n for n, v in (("rate", rate), ("concurrency", concurrency), ("time-scale", time_scale)) if v is not None]
    if len(given) > 1:
        raise FroudeError(f"{given[1]}: cannot be combined with {given[0]}; give one of rate, concurrency, time-scale")
    if isinstance(source, Trace):
        trace = source if requests is None else source.first(requests)
    else:
        trace = load_trace(str(source), seed, requests)
    if rate is None and arrivals != "poisson":
        raise InvalidValueError("arrivals", arrivals, "needs a rate; give --rate, requests per second")
    if rate is not None:
        return trace.at_rate(rate, seed, arrivals)
    if concurrency is not None:
        if concurrency < 1:
            raise InvalidValueError("concurrency", concurrency, "is not a number of clients; the least is 1")
        if trace.after is not None:
            why = f"cannot be combined with {trace.name}, whose requests wait for each other; give a rate"
            raise InvalidValueError("concurrency", concurrency, why)
        return trace.at_once()
    return trace if time_scale is None else trace.scaled(time_scale)


def sequences_of(trace: Trace) -> list[Sequence]:
    """The trace's requests as an engine takes them; arrivals become integer picoseconds here, once."""
    arrivals = np.rint(trace.arrival_s * PS).astype(np.int64).tolist()
    one: dict[int, int] = {}  # equal lengths are one object: a long trace has many requests and few lengths
    lengths = [[one.setdefault(n, n) for n in column.tolist()] for column in (trace.input_tokens, trace.output_tokens)]
    columns = zip(arrivals, *lengths, strict=True)
    with uncollected():
        sequences = [Sequence(i, arrival, prompt, output) for i, (arrival, prompt, output) in enumerate(columns)]
    if trace.prefix_ids is not None:
        for sequence, ids in zip(sequences, trace.prefix_ids, strict=True):
            sequence.prefix = ids if len(set(ids)) == len(ids) else tuple(dict.fromkeys(ids))
    if trace.priority is not None:
        for sequence, priority in zip(sequences, trace.priority.tolist(), strict=True):
            sequence.priority = priority
    if trace.client is not None:
        for sequence, client in zip(sequences, trace.client.tolist(), strict=True):
            sequence.client = client
    if trace.after is not None:
        thinking = [0.0] * len(trace) if trace.think_s is None else trace.think_s.tolist()
        for sequence, after, think_s in zip(sequences, trace.after, thinking, strict=True):
            sequence.after, sequence.delay_ps = after, round(think_s * PS)
    return sequences


def simulate_serve(
    model: str | Architecture,
    cluster: str | Cluster,
    trace: str | Path | Trace,
    *,
    rate: float | None = None,
    arrivals: str = "poisson",
    concurrency: int | None = None,
    time_scale: float | None = None,
    requests: int | None = None,
    seed: int = 0,
    slo: str | None = None,
    stepping: bool = False,
    record: bool = False,
    context_tokens: int | None = None,
    **deployment: Any,
) -> ServeResult:
    """Serve a trace and see what happens.

    Args:
        model, cluster: what runs where; names or specs.
        trace: a file, a synthetic workload's name, or a `Trace`.
        rate, arrivals, concurrency, time_scale, requests, seed: the load, see `make_load`.
        slo: targets such as ``ttft=0.5,tpot=0.05`` in seconds.
        stepping: one iteration at a time; the same figures, slowly.
        record: keep the segments, for timelines.
        context_tokens: the engine's limit of prompt and output together, for schedulers that reserve up to it.
        deployment: see `build_deployment`.
    """
    targets = parse_slo(slo)
    built = build_deployment(model, cluster, **deployment)
    load = make_load(
        trace,
        rate=rate,
        arrivals=arrivals,
        concurrency=concurrency,
        time_scale=time_scale,
        requests=requests,
        seed=seed,
    )
    how = {"stepping": stepping, "record": record}
    return run_deployment(built, load, targets, concurrency=concurrency, context_tokens=context_tokens, **how)


def run_deployment(
    built: Deployment,
    load: Trace,
    slo: dict[str, float] | None = None,
    *,
    concurrency: int | None = None,
    stepping: bool = False,
    record: bool = False,
    context_tokens: int | None = None,
) -> ServeResult:
    """Serve a load on a deployment that is already built.

    ``context_tokens`` is the most that prompt and output of a request may have together, as far as the engine knows: a
    scheduler that reserves for the longest output reserves up to it.
    """
    if built.disaggregate is not None and (concurrency is not None or load.after is not None):
        what = (
            f"concurrency {concurrency}" if concurrency is not None else f"{load.name}, whose requests wait for others"
        )
        raise InvalidValueError(
            "disaggregate", ":".join(map(str, built.disaggregate)), f"cannot be combined with {what}"
        )
    sequences = sequences_of(load)
    if context_tokens is not None:
        for sequence in sequences:
            sequence.limit_tokens = max(sequence.output_tokens, context_tokens - sequence.prompt_tokens)
    router: Router | ScalingRouter | None = ROUTERS.create(built.router) if built.replicas > 1 else None
    if built.autoscale is not None:
        router = ScalingRouter(built.autoscale, ROUTERS.create(built.router))
    units = load.prefix_block_tokens if built.prefix_cache and load.prefix_ids is not None else None
    conductor = conductor_of(built)
    how: dict[str, Any] = {
        "replicas": built.replicas,
        "router": router,
        "concurrency": concurrency,
        "prefix_unit_tokens": units,
        "swap": built.swap,
        "conductor": conductor,
    }
    start = clock.perf_counter()
    pool = built.pool
    if built.disaggregate is not None:
        outcome = _disaggregated(built, sequences, built.disaggregate, units, stepping, record)
    elif stepping:
        outcome = step(sequences, built.scheduler, built.time, pool.blocks, pool.block_tokens, **how)
    else:
        outcome = jump(sequences, built.scheduler, built.time, pool.blocks, pool.block_tokens, record=record, **how)
    wall_s = clock.perf_counter() - start
    if outcome.rejected == len(load):
        raise FroudeError(
            f"trace: none of the {len(load)} requests fits the cache of {pool.tokens} tokens; "
            "raise tp or gpu_memory_utilization"
        )
    moved = {} if conductor is None else conductor.summary()
    return ServeResult(built, load, outcome, slo or {}, [s.arrival_ps for s in sequences], wall_s, stepping, moved)


def _disaggregated(
    built: Deployment,
    sequences: list[Sequence],
    split: tuple[int, int],
    units: int | None,
    stepping: bool,
    record: bool,
) -> Outcome:
    worker = built.worker
    return serve_disaggregated(
        sequences,
        [worker] * split[0],
        [worker] * split[1],
        kv_transfer(built),
        (ROUTERS.create(built.router), ROUTERS.create("least-outstanding")),
        step_fleet if stepping else partial(jump_fleet, record=record),
        units,
    )


def kv_transfer(built: Deployment) -> Transfer:
    """The link between workers of a deployment: every device sends its own part of the cache.

    Inside a scale-up domain that is the scale-up link, else the network, at the bandwidth of the catalogue.
    """
    cluster = built.cluster
    inside = built.devices <= cluster.scaleup_domain
    bandwidth = cluster.scaleup_bandwidth if inside else cluster.scaleout_bandwidth
    latency_s = cluster.scaleup_latency_s if inside else cluster.scaleout_latency_s
    if not bandwidth > 0:
        raise InvalidValueError("cluster", cluster.device.name, "has no link between devices in the catalogue")
    return Transfer(round(latency_s * PS), round(built.pool.bytes_per_token / bandwidth * PS))
