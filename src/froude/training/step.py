"""Predict training steps: from layouts to step time, memory, MFU and the program behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache

import numpy as np

from froude.core.arrays import Array, Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.machines.cluster import Cluster, parse_cluster
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.program.evaluate import Timeline, compile_levels, evaluate, peak_memory
from froude.program.program import Program
from froude.timing.cost import CostModel
from froude.timing.roofline import Roofline
from froude.timing.stack import Stack, find_stack
from froude.training.build import Composition, Structure, build_program, compositions, skeleton, stage_composition
from froude.training.ledger import Ledger, beside_tensors, device_bytes, probability_of_fit
from froude.training.ledger_tensors import held_gradient_bytes
from froude.training.placement import LayoutBatch, Placement, kind, place
from froude.training.plan import Job, Layout, TrainPlan
from froude.training.price import Priced, add_up, combine, price, resident_bytes
from froude.training.schedule import Schedule, schedules
from froude.training.technique import StepContext, TrainingTechnique, techniques
from froude.training.work import StepWork, model_blocks, step_work


@dataclass(frozen=True)
class Scenario:
    """What stays the same over all candidates: model, machines, job, software, techniques."""

    architecture: Architecture
    cluster: Cluster
    job: Job
    stack: Stack = field(default_factory=lambda: find_stack("megatron"))
    techniques: tuple[TrainingTechnique, ...] = ()
    model: CostModel | None = None

    @classmethod
    def of(cls, plan: TrainPlan) -> Scenario:
        """The scenario of a plan.

        Raises:
            FroudeError: for unknown names, and for techniques that conflict.
        """
        used = tuple(techniques.create(use.name, **use.knobs) for use in plan.techniques)
        for one in used:
            for other in used:
                if other.name in one.conflicts:
                    raise InvalidValueError("techniques", one.name, f"cannot be combined with {other.name!r}")
        return cls(resolve(plan.model), parse_cluster(plan.cluster), plan.job, find_stack(plan.stack), used)

    @cached_property
    def costs(self) -> CostModel:
        """The cost model: the roofline of cluster and stack unless another was given."""
        return self.model or Roofline(self.cluster, self.stack)

    @property
    def own_machine(self) -> bool:
        """Whether the device is a profile measured on a computer."""
        return bool(self.cluster.device.measured)

    @cached_property
    def rewrites_program(self) -> bool:
        """Whether a technique changes the tasks of a step, which scenarios otherwise share."""
        unchanged = TrainingTechnique.rewrite_program
        return any(type(technique).rewrite_program is not unchanged for technique in self.techniques)

    def micro_batches(self, layout: Layout) -> int:
        """Micro-batches per step and replica."""
        return self.job.global_batch_sequences // (layout.data_parallel * layout.micro_batch)

    def objection(self, layout: Layout) -> str | None:
        """Why a layout is impossible (one clause naming field and value), or None."""
        arch, job = self.architecture, self.job
        if layout.devices != self.cluster.count:
            return f"layout uses {layout.devices} devices, the cluster has {self.cluster.count}"
        if job.seq_len % layout.context_parallel:
            return f"context_parallel {layout.context_parallel} does not divide seq_len {job.seq_len}"
        found = self._objection_to_experts(layout)
        if found:
            return found
        tp, pp = layout.tensor_parallel, layout.pipeline_parallel
        for name, size in (("heads", arch.heads), ("ffn", arch.ffn)):
            if size % tp:
                return f"tensor_parallel {tp} does not divide {name} {size}"
        if tp % arch.kv_heads and arch.kv_heads % tp:
            return f"tensor_parallel {tp} and kv_heads {arch.kv_heads} do not divide one another"
        if layout.sequence_parallel and job.seq_len // layout.context_parallel % tp:
            return f"tensor_parallel {tp} does not divide {job.seq_len // layout.context_parallel} tokens of a sequence"
        if pp * layout.virtual_stages > arch.layers:
            return f"{pp * layout.virtual_stages} virtual stages are more than the {arch.layers} layers"
        per_round = layout.data_parallel * layout.micro_batch
        if job.global_batch_sequences % per_round:
            return (
                f"data_parallel x micro_batch {per_round} does not divide the global batch of "
                f"{job.global_batch_sequences} sequences"
            )
        if layout.data_parallel % layout.replicate:
            return f"replicate {layout.replicate} does not divide data_parallel {layout.data_parallel}"
        if layout.replicate > 1 and (layout.zero_stage == 0 or arch.experts is not None):
            return f"replicate {layout.replicate} needs sharded states (zero_stage 1 or more) of a dense model"
        if pp > 1 and layout.zero_stage >= 3:
            return f"zero_stage {layout.zero_stage} gathers weights in every pass and is not combined with pipelines"
        found = _schedule(layout.schedule).objection(pp, self.micro_batches(layout), layout.virtual_stages)
        if found:
            return found
        for technique in self.techniques:
            found = technique.objection(arch, self.cluster, job, layout)
            if found:
                return f"{technique.name}: {found}"
        return None

    def _objection_to_experts(self, layout: Layout) -> str | None:
        experts, ways, cut = self.architecture.experts, layout.expert_parallel, layout.expert_tensor_parallel
        if layout.tensor_parallel % cut:
            return f"expert_tensor_parallel {cut} does not divide tensor_parallel {layout.tensor_parallel}"
        if ways == 1:
            return None
        if experts is None:
            return f"expert_parallel {ways} needs a mixture of experts, which {self.architecture.name!r} is not"
        if experts.count % ways:
            return f"expert_parallel {ways} does not divide the {experts.count} experts"
        ranks = layout.devices // layout.pipeline_parallel
        if ranks % (ways * cut):
            name = "expert_parallel" if cut == 1 else "expert_parallel x expert_tensor_parallel"
            return f"{name} {ways * cut} does not divide the {ranks} ranks of a pipeline stage"
        return None


def dense_layers(architecture: Architecture) -> int:
    """Leading layers with a dense MLP in a mixture of experts."""
    return architecture.experts.dense_layers if architecture.experts else 0


def _pieces(architecture: Architecture, stages: int, chunks: int) -> tuple[Composition, ...]:
    """What the virtual stages of a pipeline are made of."""
    return compositions(architecture.layers, stages, chunks, dense_layers(architecture), architecture.mtp_layers)


@lru_cache(maxsize=64)
def _schedule(name: str, used: tuple[TrainingTechnique, ...] = ()) -> Schedule:
    """One object per schedule and techniques: structures compare by it."""
    schedule = schedules.create(name)
    for technique in used:
        schedule = technique.rewrite_schedule(schedule)
    return schedule


@dataclass(frozen=True)
class StepPrediction:
    """One layout's step.

    Attributes:
        layout: what was predicted.
        step_s: seconds per optimizer step.
        mfu: model FLOPs per second over the devices' dense peak.
        tokens_per_s_per_device: throughput.
        peak_bytes: device memory that the neediest stage takes.
        p_fit: probability that this fits.
        bubble_fraction: idle share of the compute lanes, averaged over stages.
        program, timeline, candidate: where the figures come from.
    """

    layout: Layout
    step_s: float
    mfu: float
    tokens_per_s_per_device: float
    peak_bytes: float
    p_fit: float
    bubble_fraction: float
    program: Program
    timeline: Timeline
    candidate: int
    structure: Structure
    priced: Priced
    placement: Placement
    overhead_s: float
    straggling: float
    stack: Stack

    def ledger(self, *, own_machine: bool) -> Ledger:
        """Peak memory by stage and part."""
        stages: dict[int, dict[str, float]] = {}
        peaks = peak_memory(self.program)
        width = self.program.candidates

        def pick(value: Array) -> float:
            return float(np.broadcast_to(np.asarray(value, dtype=float), (width,))[self.candidate])

        for stage in range(self.structure.stages):
            kept = resident_bytes(self.structure.stage_composition(stage), self.priced, self.placement)
            parts = {name: pick(size) for name, size in kept.items()}
            total = float(peaks[stage][self.candidate])
            resident = pick(self.program.resident[stage])
            parts["activations"] = total - resident
            beside = beside_tensors(resident, total, self.placement, self.stack, own_machine=own_machine)
            parts |= {name: pick(size) for name, size in beside.items()}
            stages[stage] = parts
        return Ledger(stages)


@dataclass(frozen=True)
class WorkBatch:
    """Layouts of one kind and the work of their steps, techniques applied; nothing has a price yet."""

    layouts: tuple[Layout, ...]
    batch: LayoutBatch
    placement: Placement
    work: StepWork
    context: StepContext


@dataclass(frozen=True)
class PricedBatch(WorkBatch):
    """Layouts of one kind, priced together: the first half of a prediction, enough for bounds."""

    priced: Priced


def price_layouts(scenario: Scenario, layouts: Sequence[Layout]) -> list[PricedBatch]:
    """Price layouts, one batch per kind of work, techniques applied."""
    return [
        PricedBatch(b.layouts, b.batch, b.placement, b.work, b.context, price(b.work, scenario.costs))
        for b in work_of_layouts(scenario, layouts)
    ]


def work_of_layouts(scenario: Scenario, layouts: Sequence[Layout]) -> list[WorkBatch]:
    """The work of layouts, one batch per kind of work, techniques applied."""
    by_kind: dict[object, list[Layout]] = {}
    for layout in layouts:
        by_kind.setdefault(kind(layout), []).append(layout)
    batches = []
    for members in by_kind.values():
        batch = LayoutBatch.of(members)
        arch, job = scenario.architecture, scenario.job
        placement = place(job, batch, gradient_bytes(scenario), held_gradient_bytes(job, scenario.stack))
        context = StepContext(arch, scenario.cluster, job, batch, scenario.costs, placement)
        for technique in scenario.techniques:
            context = replace(context, placement=technique.rewrite_placement(context.placement, context))
        placement = context.placement
        blocks = model_blocks(arch, job, batch, placement, scenario.stack)
        for technique in scenario.techniques:
            blocks = technique.rewrite_blocks(blocks, context)
        work = step_work(blocks, arch, job, batch, placement, scenario.stack)
        for technique in scenario.techniques:
            work = technique.rewrite_work(work, context)
        batches.append(WorkBatch(tuple(members), batch, placement, work, context))
    return batches


def gradient_bytes(scenario: Scenario) -> float:
    """Bytes per parameter in which gradients are accumulated and reduced: what the stack does."""
    return 4.0 if scenario.job.precision == "fp32" or scenario.stack.gradients == "fp32" else 2.0


def structure_of(scenario: Scenario, batch: WorkBatch, index: int, micro_batches: int | None = None) -> Structure:
    """The structure of one layout's step, or of one with another number of micro-batches."""
    layout, work, stack = batch.layouts[index], batch.work, scenario.stack
    schedule = _schedule(layout.schedule, scenario.techniques)
    replicas = layout.data_parallel * layout.context_parallel > 1
    structure = Structure(
        stages=layout.pipeline_parallel,
        chunks=layout.virtual_stages,
        micro_batches=micro_batches or scenario.micro_batches(layout),
        schedule=schedule,
        pieces=_pieces(scenario.architecture, layout.pipeline_parallel, layout.virtual_stages),
        gather_each=work.gather_forward.each if work.gather_forward and replicas else None,
        reduce_each=work.reduce.each if work.reduce and replicas else None,
        shard_overlap=stack.shard_overlap != "none",
        gradient_overlap=stack.gradient_overlap != "none",
        pipeline_overlap=stack.pipeline_overlap != "none",
    )
    for technique in scenario.techniques:
        structure = technique.rewrite_structure(structure, batch.context)
    return structure


def predict(scenario: Scenario, layouts: Sequence[Layout]) -> list[StepPrediction]:
    """Predict every layout; those that share a structure are evaluated together.

    Raises:
        FroudeError: for a layout that is impossible, saying why.
    """
    for layout in layouts:
        why = scenario.objection(layout)
        if why:
            raise FroudeError(f"layout: {why}")
    found: dict[int, StepPrediction] = {}
    place_of = {id(layout): i for i, layout in enumerate(layouts)}
    for batch in price_layouts(scenario, layouts):
        for prediction in predict_priced(scenario, batch, range(len(batch.layouts))):
            found[place_of[id(prediction.layout)]] = prediction
    return [found[i] for i in range(len(layouts))]


def predict_priced(scenario: Scenario, batch: PricedBatch, which: Sequence[int]) -> list[StepPrediction]:
    """Evaluate some layouts of a priced batch."""
    groups: dict[Structure, list[int]] = {}
    for i in which:
        groups.setdefault(structure_of(scenario, batch, i), []).append(i)
    predictions: list[StepPrediction] = []
    for structure, members in groups.items():
        predictions += _predict_group(scenario, batch, structure, members)
    return predictions


def _predict_group(
    scenario: Scenario, batch: PricedBatch, structure: Structure, members: list[int]
) -> list[StepPrediction]:
    index = np.array(members)
    priced = batch.priced.pick(index)
    placement = _pick_placement(batch.placement, index)
    resident: dict[int, Array] = {
        stage: sum(resident_bytes(structure.stage_composition(stage), priced, placement).values(), start=0.0)
        for stage in range(structure.stages)
    }
    program = build_program(structure, priced, resident, own=scenario.rewrites_program)
    context = replace(batch.context, batch=_pick_batch(batch.batch, index), placement=placement)
    for technique in scenario.techniques:
        program = technique.rewrite_program(program, structure, priced, context)
    levels = compile_levels(program) if scenario.rewrites_program else skeleton(structure).levels
    timeline = evaluate(program, levels)
    width = len(members)
    nodes = scenario.cluster.nodes
    straggling = float(np.asarray(scenario.costs.straggling(nodes)))
    overhead_s = scenario.costs.step_overhead_s()
    step_s = np.broadcast_to(timeline.makespan_s * straggling + overhead_s, (width,))
    own, stack = scenario.own_machine, scenario.stack
    taken = [
        np.broadcast_to(device_bytes(program.resident[stage], held, placement, stack, own_machine=own), (width,))
        for stage, held in peak_memory(program, levels).items()
    ]
    peak = np.max(taken, axis=0)
    fits = probability_of_fit(peak, scenario.cluster.device.memory_bytes)
    bubble = _idle_fraction(program, timeline, width)
    job, device = scenario.job, scenario.cluster.device
    tokens = float(job.global_batch_tokens)
    model_flops = 3.0 * scenario.architecture.flops_per_token(job.seq_len) * tokens
    peak_flops = device.peak(job.product_dtype) * scenario.cluster.count
    return [
        StepPrediction(
            layout=batch.layouts[i],
            step_s=float(step_s[column]),
            mfu=float(model_flops / step_s[column] / peak_flops),
            tokens_per_s_per_device=float(tokens / step_s[column] / scenario.cluster.count),
            peak_bytes=float(peak[column]),
            p_fit=float(fits[column]),
            bubble_fraction=float(bubble[column]),
            program=program,
            timeline=timeline,
            candidate=column,
            structure=structure,
            priced=priced,
            placement=placement,
            overhead_s=overhead_s,
            straggling=straggling,
            stack=scenario.stack,
        )
        for column, i in enumerate(members)
    ]


def lower_bound_s(scenario: Scenario, batch: PricedBatch) -> Floats:
    """A step time that no layout of the batch can beat: its busiest stage's work, and the first fill of the pipeline.

    The last stage cannot start before one micro-batch has come through all stages, nor the first stage end before one
    has come back; both must do all their passes.
    """
    count = len(batch.layouts)
    bounds = np.zeros(count)
    groups: dict[tuple[int, int, int], list[int]] = {}
    for i, layout in enumerate(batch.layouts):
        key = (layout.pipeline_parallel, layout.virtual_stages, scenario.micro_batches(layout))
        groups.setdefault(key, []).append(i)
    for (stages, chunks, micro_batches), members in groups.items():
        index = np.array(members)
        priced = batch.priced.pick(index)
        pieces = _pieces(scenario.architecture, stages, chunks)
        first, last = stage_composition(pieces, 0, stages), stage_composition(pieces, stages - 1, stages)
        both = {name: priced.forward[name] + priced.backward[name] for name in priced.forward}
        fill = sum((combine(piece, both).seconds for piece in pieces[: stages - 1]), start=0.0)
        busy_last = micro_batches * combine(last, both).seconds + fill
        busy_first = micro_batches * combine(first, both).seconds
        bounds[index] = np.maximum(busy_last, busy_first)
    straggling = scenario.costs.straggling(scenario.cluster.nodes)
    bound: Floats = bounds * straggling + scenario.costs.step_overhead_s()
    return bound


def least_memory_bytes(scenario: Scenario, batch: PricedBatch) -> Floats:
    """Memory that every layout of the batch needs at least: its first and last stage with few micro-batches."""
    count = len(batch.layouts)
    least: Floats = np.zeros(count)
    groups: dict[tuple[int, int, int, str], list[int]] = {}
    for i, layout in enumerate(batch.layouts):
        few = min(scenario.micro_batches(layout), 2 * layout.pipeline_parallel)
        key = (layout.pipeline_parallel, layout.virtual_stages, few, layout.schedule)
        groups.setdefault(key, []).append(i)
    for (stages, chunks, few, schedule), members in groups.items():
        index = np.array(members)
        priced = batch.priced.pick(index)
        placement = _pick_placement(batch.placement, index)
        pieces = _pieces(scenario.architecture, stages, chunks)
        for stage in {0, stages - 1}:
            kept = resident_bytes(stage_composition(pieces, stage, stages), priced, placement)
            resident: Array = sum(kept.values(), start=0.0)
            held = resident
            for chunk, most in enumerate(_most_in_flight(schedule, stages, few, chunks)[stage]):
                held = held + most * add_up(pieces[chunk * stages + stage], priced.saved_bytes)
            taken = device_bytes(resident, held, placement, scenario.stack, own_machine=scenario.own_machine)
            least[index] = np.maximum(least[index], taken)
    return least


@lru_cache(maxsize=4096)
def _most_in_flight(schedule: str, stages: int, micro_batches: int, chunks: int) -> dict[int, tuple[int, ...]]:
    """Of the first and the last stage: micro-batches held per chunk at the moment most passes are in flight."""
    orders = _schedule(schedule).order(stages, micro_batches, chunks)
    result = {}
    for stage in {0, stages - 1}:
        held, most = [0] * chunks, [0] * chunks
        for item in orders[stage]:
            held[item.chunk] += 1 if item.kind == "forward" else -1
            if sum(held) > sum(most):
                most = list(held)
        result[stage] = tuple(most)
    return result


def _idle_fraction(program: Program, timeline: Timeline, width: int) -> Floats:
    span = timeline.makespan_s
    idle = []
    for lane, order in program.lanes.items():
        if lane.stream == "compute":
            busy = (timeline.end_s[order] - timeline.start_s[order]).sum(axis=0)
            idle.append(1.0 - busy / np.where(span > 0, span, 1.0))
    mean: Floats = np.broadcast_to(np.mean(idle, axis=0), (width,))
    return mean


def _pick_placement(placement: Placement, index: np.ndarray) -> Placement:
    def pick(value: Array) -> Array:
        return value if np.ndim(value) == 0 else np.asarray(value)[index]

    return replace(
        placement,
        copies=pick(placement.copies),
        mesh={axis: pick(size) for axis, size in placement.mesh.items()},
        states={name: replace(state, shards=pick(state.shards)) for name, state in placement.states.items()},
    )


def _pick_batch(batch: LayoutBatch, index: np.ndarray) -> LayoutBatch:
    arrays = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: value[index] for name, value in arrays.items() if isinstance(value, np.ndarray)})
