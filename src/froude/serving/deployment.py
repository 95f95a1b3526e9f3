"""A model on machines under an engine, built from names: all of a serving simulation but the load."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass

from froude.core.errors import InvalidValueError, UnknownNameError
from froude.machines.cluster import Cluster, parse_cluster
from froude.machines.device import Device
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.serving.autoscaling import Autoscaling
from froude.serving.conductor import Conductor
from froude.serving.disaggregation import Transfer, parse_disaggregation
from froude.serving.engine_spec import KV_DTYPES, EngineSpec, find_engine
from froude.serving.failures import Failures
from froude.serving.iteration import IterationTime
from froude.serving.kv_cache import Pool, size_pool
from froude.serving.metrics import PS
from froude.serving.migration import LiveMigration
from froude.serving.model_time import ModelIterationTime, check_parallel, check_pipeline, product_start_s
from froude.serving.outcome import Swap, Worker
from froude.serving.pipeline_time import PipelineIterationTime
from froude.serving.policy import SCHEDULERS, Scheduler
from froude.serving.power_cap import capped
from froude.serving.precision import find_precision
from froude.serving.router import ROUTERS
from froude.serving.technique import ServingContext, ServingTechnique
from froude.serving.technique import techniques as TECHNIQUES
from froude.serving.techniques.speculative import Speculative
from froude.timing.extra import with_kernels
from froude.timing.roofline import Roofline


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
