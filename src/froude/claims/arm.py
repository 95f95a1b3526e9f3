"""One arm of a claim as a training scenario, and the quantities that claims compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from froude.claims.claim import Settings
from froude.core.errors import FroudeError, UnknownNameError
from froude.core.spec import Spec
from froude.machines.cluster import Cluster, parse_cluster
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.timing.stack import find_stack
from froude.training.plan import Job, Layout, TechniqueUse
from froude.training.step import Scenario, StepPrediction, predict
from froude.training.technique import techniques


class Arm(Spec):
    """A training run as a claim describes it.

    Attributes:
        model: a name, or `Architecture` fields, of which ``like`` names the model that the others change.
        cluster: as on the command line, or `Cluster` fields.
        stack, mechanisms: the software stack, and what is different in it.
        techniques: in the order in which they act.
    """

    model: str | dict[str, Any]
    cluster: str | dict[str, Any]
    job: Job
    layout: Layout
    stack: str = "megatron"
    mechanisms: dict[str, str] = {}
    techniques: tuple[TechniqueUse, ...] = ()

    def architecture(self) -> Architecture:
        """The model."""
        if isinstance(self.model, str):
            return resolve(self.model)
        changes = dict(self.model)
        like = changes.pop("like", None)
        if like is None:
            return Architecture.parse(changes, where="model")
        known = resolve(like).model_dump()
        if {"heads", "hidden"} & changes.keys():  # what follows from them must follow anew
            del known["kv_heads"], known["head_dim"]
        return Architecture.parse({**known, **changes}, where="model")

    def scenario(self) -> Scenario:
        """What is predicted."""
        cluster = parse_cluster(self.cluster) if isinstance(self.cluster, str) else Cluster.parse(self.cluster)
        stack = find_stack(self.stack)
        return Scenario(
            architecture=self.architecture(),
            cluster=cluster,
            job=self.job,
            stack=stack.but(**self.mechanisms) if self.mechanisms else stack,
            techniques=tuple(techniques.create(use.name, **use.knobs) for use in self.techniques),
        )


@dataclass(frozen=True)
class Metric:
    """A quantity of one arm, in SI units, and which way is better."""

    better: Literal["lower", "higher"]
    of: Callable[[Scenario, StepPrediction], float]

    def gain(self, baseline: float, technique: float) -> float:
        """How many times better the technique is."""
        return baseline / technique if self.better == "lower" else technique / baseline


def _hardware_flops(scenario: Scenario, step: StepPrediction) -> float:
    """FLOP/s per device counted as Megatron-LM's papers do: recomputed layers included, attention not halved."""
    arch, job = scenario.architecture, scenario.job
    head = 2.0 * arch.vocab * arch.hidden
    layers = arch.flops_per_token(job.seq_len, causal=False) - head
    passes = 4.0 if step.layout.recompute == "full" else 3.0
    return float((passes * layers + 3.0 * head) * job.global_batch_tokens / step.step_s / scenario.cluster.count)


def _model_state_bytes(scenario: Scenario, step: StepPrediction) -> float:
    states = step.placement.states
    parts = step.ledger(own_machine=scenario.own_machine).stages.values()
    return max(sum(size for name, size in stage.items() if name in states) for stage in parts)


METRICS: dict[str, Metric] = {
    "step_s": Metric("lower", lambda _, step: step.step_s),
    "tokens_per_s_per_device": Metric("higher", lambda _, step: step.tokens_per_s_per_device),
    "hardware_flops_per_s_per_device": Metric("higher", _hardware_flops),
    "peak_bytes": Metric("lower", lambda _, step: step.peak_bytes),
    "model_state_bytes": Metric("lower", _model_state_bytes),
}


def find_metric(name: str) -> Metric:
    """The metric of that name."""
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]


def measure(settings: Settings, metric: Metric, where: str) -> float:
    """Predict one arm.

    Raises:
        FroudeError: when its settings are wrong or the layout is impossible.
    """
    arm = Arm.parse(settings, where=where)
    scenario = arm.scenario()
    try:
        return metric.of(scenario, predict(scenario, [arm.layout])[0])
    except FroudeError as error:
        raise FroudeError(f"{where}: {error}") from None
