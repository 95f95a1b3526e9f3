"""Why a plan takes as long as it does: where the step goes, what would help, why not another layout, what a gap is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from froude.core.errors import FroudeError
from froude.planning.suspects import Suspect, rank_suspects
from froude.timing.extra import said_of
from froude.training.accuracy import step_spread
from froude.training.api import PlannedLayout
from froude.training.bounds import least_memory_bytes, lower_bound_s
from froude.training.ledger import probability_of_fit
from froude.training.outcome import outcome
from froude.training.plan import ContextExchange, Layout, TechniqueUse, TrainPlan
from froude.training.scenario import Scenario
from froude.training.schedule import schedules
from froude.training.search import LONG_SEQUENCE, MIN_P_FIT, parse_fixed, search
from froude.training.step import StepPrediction, predict, predict_priced, price_layouts
from froude.training.technique import techniques
from froude.training.waterfall import Waterfall, waterfall

HELPFUL = 1.001
"""A change that gains less is none."""
FAR_BETTER = 1.05
"""Another layout that is faster by more than single changes allow is worth a warning."""
REASONS = 3
UNEXPLAINED = 0.1
"""A suspect whose step misses the measured one by more, in logarithms, explains little."""


@dataclass(frozen=True)
class Other:
    """Another way to do the job, next to the plan.

    Attributes:
        what: what is different, in words.
        plan: the whole plan with it; None where there is nothing that could run.
        step_s, peak_bytes, p_fit: predicted.
        gain: step time of the plan explained over this one's.
        difference_s: part of the step -> seconds it takes more (negative: less) than in the plan; they add up.
        why_not: why it cannot run; empty where it can.
    """

    what: str
    plan: TrainPlan | None
    step_s: float = math.nan
    peak_bytes: float = math.nan
    p_fit: float = 0.0
    gain: float = math.nan
    difference_s: Mapping[str, float] = field(default_factory=dict)
    why_not: str = ""

    @property
    def reasons(self) -> list[tuple[str, float]]:
        """The largest parts of the difference, largest first."""
        largest = sorted(self.difference_s.items(), key=lambda part: -abs(part[1]))[:REASONS]
        return [(name, change) for name, change in largest if abs(change) > 1e-4 * self.step_s]

    def json(self) -> dict[str, Any]:
        """For ``explain --json``."""
        return {
            "what": self.what,
            "layout": None if self.plan is None else self.plan.layout.model_dump(mode="json"),
            "techniques": [] if self.plan is None else [use.name for use in self.plan.techniques],
            "step_s": self.step_s,
            "gain": self.gain,
            "peak_memory_bytes": self.peak_bytes,
            "p_fit": self.p_fit,
            "difference_s": dict(self.difference_s),
            "reasons": [{"part": name, "seconds": change} for name, change in self.reasons],
            "why_not": self.why_not,
        }


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        planned: the plan and its prediction.
        waterfall: where the step goes.
        changes: single changes that help most, best first.
        others: other layouts, and why they are worse (or not).
        measured_step_s: what was measured, if anything was.
        suspects: what most likely explains the gap to it, likeliest first.
        assumptions, warnings: for the reader.
    """

    planned: PlannedLayout
    waterfall: Waterfall
    changes: tuple[Other, ...]
    others: tuple[Other, ...]
    measured_step_s: float | None
    suspects: tuple[Suspect, ...]
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> bool:
        """Whether nothing else looked at is faster."""
        return all(other.gain < HELPFUL for other in (*self.changes, *self.others) if other.plan is not None)

    @property
    def step_s(self) -> float:
        """The predicted step."""
        return self.planned.prediction.step_s

    def json(self) -> dict[str, Any]:
        """What ``froude explain --json`` prints."""
        return {
            **self.planned.json(),
            "waterfall_s": self.waterfall.seconds,
            "changes": [change.json() for change in self.changes],
            "others": [other.json() for other in self.others],
            "best": self.best,
            "measured_step_s": self.measured_step_s,
            "suspects": [vars(suspect) for suspect in self.suspects],
        }


def explain(
    plan: TrainPlan,
    *,
    measured_step_s: float | None = None,
    against: str | None = None,
    changes: int = 3,
    constants: str | os.PathLike[str] | None = None,
    kernels: str | None = None,
) -> Explanation:
    """Explain a plan's step.

    Args:
        plan: what is to be explained.
        measured_step_s: what a step really took: adds what most likely explains the gap.
        against: fields of another layout, such as ``dp=32,tp=8``; the others as in the plan, data parallelism as the
            devices allow. By default the best layouts of other kinds.
        changes: how many helpful changes to name.
        constants: file of constants that `froude calibrate` wrote, in place of the plan's.
        kernels: "fitted" or "measured", in place of what the plan says.

    Raises:
        FroudeError: when the plan, the other layout or the measured step is impossible, saying why.
    """
    plan = plan.priced_by(kernels=kernels, constants=constants)
    scenario = Scenario.of(plan)
    prediction = predict(scenario, [plan.layout])[0]
    planned = PlannedLayout(scenario.cluster, prediction, outcome(scenario, prediction), plan, scenario)
    here = _Here(plan, scenario, prediction, waterfall(prediction))
    suspects: list[Suspect] = []
    if measured_step_s is not None:
        uncalibrated = Scenario.of(plan.model_copy(update={"calibration": None}))
        suspects = rank_suspects(uncalibrated, plan.layout, measured_step_s, plan.calibration)
    helpful = tuple(_helpful(here, changes))
    others = (_against(here, against),) if against is not None else tuple(_kinds(here))
    return Explanation(
        planned,
        here.waterfall,
        helpful,
        others,
        measured_step_s,
        tuple(suspects),
        (
            "one change at a time; what is not named stays as in the plan, and data parallelism follows",
            "suspects act alone: prior of the constant times likelihood of the measured step; causes of like effect "
            "are told apart by measuring a second layout, not by one step",
            *said_of(scenario.cluster),
        ),
        (*_far_better(helpful, others), *_warnings(planned, measured_step_s, suspects)),
    )


@dataclass(frozen=True)
class _Here:
    """The plan that others are held against."""

    plan: TrainPlan
    scenario: Scenario
    prediction: StepPrediction
    waterfall: Waterfall

    def other(self, what: str, prediction: StepPrediction, uses: tuple[TechniqueUse, ...] = ()) -> Other:
        """Something else that was predicted, next to the plan."""
        alike = prediction.structure.stages == self.prediction.structure.stages
        parts = waterfall(prediction, self.waterfall.stage if alike else None).seconds
        before = self.waterfall.seconds
        names = [*before, *(name for name in parts if name not in before)]
        layout = Layout.parse(prediction.layout.model_dump())
        return Other(
            what,
            self.plan.model_copy(
                update={"layout": layout, "techniques": (*self.plan.techniques, *uses), "predicted": {}}
            ),
            prediction.step_s,
            prediction.peak_bytes,
            prediction.p_fit,
            self.prediction.step_s / prediction.step_s,
            {name: parts.get(name, 0.0) - before.get(name, 0.0) for name in names},
        )


# -- what would help --------------------------------------------------------------------------------------------------


def _helpful(here: _Here, count: int) -> list[Other]:
    found = [*_better_neighbours(here, count), *_better_techniques(here)]
    return sorted(found, key=lambda other: other.step_s)[:count]


def _better_neighbours(here: _Here, count: int) -> list[Other]:
    """Neighbours that fit and are faster; all are bounded, and evaluated best bound first until no other can be one."""
    scenario, capacity = here.scenario, here.scenario.cluster.device.memory_bytes
    wanted = {layout: what for what, layout in neighbours(scenario, here.plan.layout)}
    batches = price_layouts(scenario, list(wanted))
    queue = []
    for number, batch in enumerate(batches):
        fits = probability_of_fit(least_memory_bytes(scenario, batch), capacity) >= MIN_P_FIT
        bounds = lower_bound_s(scenario, batch)
        queue += [(float(bounds[i]), number, i) for i in range(len(batch.layouts)) if fits[i]]
    found: list[Other] = []
    for bound_s, number, i in sorted(queue):
        limit_s = found[count - 1].step_s if len(found) >= count else here.prediction.step_s / HELPFUL
        if bound_s >= limit_s:
            break
        (prediction,) = predict_priced(scenario, batches[number], [i])
        if prediction.p_fit >= MIN_P_FIT and prediction.step_s * HELPFUL < here.prediction.step_s:
            found.append(here.other(wanted[prediction.layout], prediction))
            found.sort(key=lambda other: other.step_s)
    return found


def _better_techniques(here: _Here) -> Iterator[Other]:
    for name in techniques.names():
        if any(use.name == name for use in here.plan.techniques):
            continue
        use = TechniqueUse(name=name)
        try:
            scenario = Scenario.of(here.plan.model_copy(update={"techniques": (*here.plan.techniques, use)}))
            (prediction,) = predict(scenario, [here.plan.layout])
        except FroudeError:
            continue  # it cannot be used with this plan
        if prediction.p_fit >= MIN_P_FIT and prediction.step_s * HELPFUL < here.prediction.step_s:
            yield here.other(f"with {name}", prediction, (use,))


def neighbours(scenario: Scenario, layout: Layout) -> Iterator[tuple[str, Layout]]:
    """Possible layouts that differ in one field, and in what must follow from it; with the difference in words."""
    for name, value in _moves(scenario, layout):
        other = _with(scenario, layout, {name: value})
        if other is None or other == layout or scenario.objection(other) is not None:
            continue
        words = [f"{name} {getattr(layout, name)} -> {getattr(other, name)}"]
        words += [
            f"{follows} {getattr(other, follows)}"
            for follows in Layout.model_fields
            if follows not in (name, "sequence_parallel") and getattr(other, follows) != getattr(layout, follows)
        ]
        yield ", ".join(words), other


def _moves(scenario: Scenario, layout: Layout) -> Iterator[tuple[str, Any]]:
    scaled = ["tensor_parallel", "pipeline_parallel", "micro_batch"]
    if scenario.job.seq_len >= LONG_SEQUENCE or layout.context_parallel > 1:
        scaled.append("context_parallel")
    if scenario.architecture.experts is not None:
        scaled.append("expert_parallel")
    for name in scaled:
        value = getattr(layout, name)
        yield name, 2 * value
        if value % 2 == 0:
            yield name, value // 2
    if layout.pipeline_parallel > 1:
        chunks, per_stage = layout.virtual_stages, scenario.architecture.layers / layout.pipeline_parallel
        divisors = [v for v in range(1, int(per_stage) + 1) if per_stage % v == 0]
        yield from (("virtual_stages", v) for v in divisors if chunks / 2 <= v <= 2 * chunks and v != chunks)
        yield from (("schedule", name) for name in schedules.names())
    if layout.context_parallel > 1:
        yield from (("context_exchange", kind) for kind in get_args(ContextExchange))
    yield from (("recompute", kind) for kind in ("none", "selective", "full"))
    yield from (("zero_stage", stage) for stage in (0, 1, 2, 3))
    if layout.tensor_parallel > 1:
        yield "sequence_parallel", not layout.sequence_parallel


def _with(scenario: Scenario, layout: Layout, changes: Mapping[str, Any]) -> Layout | None:
    """The layout with some fields changed and those that must follow; None where the devices do not divide."""
    fields = {**layout.model_dump(), **changes}
    if "data_parallel" not in changes:
        others = fields["tensor_parallel"] * fields["pipeline_parallel"] * fields["context_parallel"]
        fields["data_parallel"], rest = divmod(scenario.cluster.count, others)
        if rest or not fields["data_parallel"]:
            return None
    if fields["pipeline_parallel"] == 1:
        fields.update(virtual_stages=1, schedule="1f1b")
    elif "zero_stage" not in changes and fields["zero_stage"] > 1:
        fields["zero_stage"] = 1  # pipelines shard optimizer states only
    if "virtual_stages" in changes or "pipeline_parallel" in changes:
        fields["stage_layers"] = None
    if "schedule" not in changes and "virtual_stages" in changes:
        fields["schedule"] = "interleaved-1f1b" if fields["virtual_stages"] > 1 else "1f1b"
    if "sequence_parallel" not in changes:
        fields["sequence_parallel"] = fields["tensor_parallel"] > 1 and (
            layout.sequence_parallel or layout.tensor_parallel == 1
        )
    return Layout.parse(fields)


# -- why not another --------------------------------------------------------------------------------------------------


def _against(here: _Here, text: str) -> Other:
    changes = parse_fixed(text)
    other = _with(here.scenario, here.plan.layout, changes)
    if other is None:
        raise FroudeError(f"against: {text!r} does not divide {here.scenario.cluster.count} devices")
    return here.other(text, predict(here.scenario, [other])[0])


def _kinds(here: _Here) -> Iterator[Other]:
    """The best layout of all, and the best of kinds that the plan is not."""
    found: dict[Layout, tuple[list[str], StepPrediction]] = {}
    impossible = []
    for what, fixed in [("the best of all", {}), *_other_kinds(here)]:
        try:
            best = search(here.scenario, keep=1, fixed=fixed).best[0]
        except FroudeError as why:
            impossible.append(Other(what, None, why_not=str(why)))
            continue
        layout = Layout.parse(best.layout.model_dump())
        if layout != here.plan.layout:
            found.setdefault(layout, ([], best))[0].append(what)
    for whats, prediction in found.values():
        yield here.other("; ".join(whats), prediction)
    yield from impossible


def _other_kinds(here: _Here) -> Iterator[tuple[str, dict[str, Any]]]:
    layout, scenario = here.plan.layout, here.scenario
    domain = math.gcd(scenario.cluster.scaleup_domain, scenario.cluster.count)
    if layout.tensor_parallel > 1:
        yield "the best without tensor parallelism", {"tensor_parallel": 1}
    elif domain > 1 and scenario.architecture.heads % domain == 0:
        yield f"the best with tensor parallelism of {domain}", {"tensor_parallel": domain}
    if layout.pipeline_parallel > 1:
        yield "the best without a pipeline", {"pipeline_parallel": 1}
    elif scenario.cluster.count % 2 == 0 and scenario.architecture.layers > 1:
        yield "the best with a pipeline of 2", {"pipeline_parallel": 2}
    if layout.virtual_stages > 1:
        yield "the best without virtual stages", {"virtual_stages": 1}
    if layout.zero_stage == 3:
        yield "the best without sharded weights", {"zero_stage": 1}
    elif layout.data_parallel > 1:
        yield "the best with sharded weights", {"zero_stage": 3, "pipeline_parallel": 1}
    if layout.recompute == "none":
        yield "the best with full recomputation", {"recompute": "full"}
    else:
        yield "the best without recomputation", {"recompute": "none"}


def _far_better(changes: tuple[Other, ...], others: tuple[Other, ...]) -> Iterator[str]:
    """A layout out of reach of single changes that is much faster than any of them."""
    runs = [other for other in others if other.plan is not None and other.p_fit >= MIN_P_FIT]
    best = max(runs, key=lambda other: other.gain, default=None)
    reached = max((change.gain for change in changes), default=1.0)
    if best is not None and best.gain > FAR_BETTER * max(1.0, reached):
        yield (
            f"another layout takes {best.step_s:.3g} s, {best.gain:.2f} times as fast as this plan ({best.what}): no "
            "single change leads there, `froude plan train` finds it"
        )


def _warnings(planned: PlannedLayout, measured_step_s: float | None, suspects: list[Suspect]) -> Iterator[str]:
    p_fit = planned.prediction.p_fit
    if p_fit < MIN_P_FIT:
        yield f"the plan fits in memory with probability {p_fit:.2f} only"
    if measured_step_s is not None:
        spread, _ = step_spread(planned.scenario)
        if abs(math.log(measured_step_s / planned.prediction.step_s)) < math.log1p(spread):
            yield (
                f"the measured step is within the prediction's own interval (a factor of {1.0 + spread:.2f}): "
                "there may be nothing to explain"
            )
        elif not suspects or abs(math.log(suspects[0].predicted_step_s / measured_step_s)) > UNEXPLAINED:
            yield (
                "no suspect alone explains the measured step: several act together, something unknown does, or what "
                "ran is not what the plan says"
            )
