"""One arm of a claim about serving: a deployment and a load, and what is compared of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from froude.claims.metric import Metric
from froude.claims.parts import Described, Use, architecture, cluster
from froude.core.arrays import Floats
from froude.core.spec import Spec
from froude.serving.api import Deployment, build_deployment, make_load
from froude.serving.outcome import NEVER, Outcome
from froude.serving.policy import SCHEDULERS, Sequence
from froude.serving.simulator import jump
from froude.serving.technique import techniques
from froude.workloads.trace import Ints, Trace, make_trace

PS = 1e12
Z90 = 1.2815515655446004
"""90th percentile of the standard normal distribution."""


class Length(Spec):
    """A log-normal length through a median and a 90th percentile, in tokens."""

    median: float = Field(gt=0)
    p90: float = Field(gt=0)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        """Whole numbers, at least 1."""
        spread = math.log(self.p90 / self.median) / Z90
        return np.maximum(1, np.rint(self.median * np.exp(spread * rng.standard_normal(count)))).astype(np.int64)


class Lengths(Spec):
    """Prompt and output lengths as papers describe data sets; requests longer than the limit are drawn again."""

    prompt: Length
    output: Length
    total_at_most: int = Field(gt=1)

    def trace(self, requests: int, seed: int) -> Trace:
        """So many requests, ready at time zero."""
        rng = np.random.default_rng(seed)
        prompt, output = self.prompt.draw(rng, requests), self.output.draw(rng, requests)
        while (long := np.flatnonzero(prompt + output > self.total_at_most)).size:
            prompt[long], output[long] = self.prompt.draw(rng, long.size), self.output.draw(rng, long.size)
        return make_trace("lengths", np.zeros(requests), prompt, output, source="quantiles")


class ServingArm(Spec):
    """A serving run as a claim describes it.

    Attributes:
        model, cluster: see `froude.claims.parts`.
        trace, lengths: a synthetic workload by name, or lengths by quantiles: one of the two.
        rate: Poisson arrivals per second; without it every request waits from the start.
        context_tokens: most tokens of prompt and output together that an engine must expect of a request.
        scheduler, techniques: by name, with their knobs.
    """

    model: Described
    cluster: Described
    trace: str | None = None
    lengths: Lengths | None = None
    requests: int = Field(gt=0)
    rate: float | None = None
    seed: int = 0
    context_tokens: int | None = None
    engine: str = "vllm"
    tensor_parallel: int = 1
    scheduler: Use
    techniques: tuple[Use, ...] = ()

    @model_validator(mode="after")
    def _one_workload(self) -> Self:
        if (self.trace is None) == (self.lengths is None):
            raise ValueError("give one of trace and lengths")
        return self

    def deployment(self) -> Deployment:
        """What serves."""
        return build_deployment(
            architecture(self.model),
            cluster(self.cluster),
            engine=self.engine,
            scheduler=SCHEDULERS.create(self.scheduler.name, **self.scheduler.knobs),
            tensor_parallel=self.tensor_parallel,
            techniques=[techniques.create(use.name, **use.knobs) for use in self.techniques],
        )

    def load(self) -> Trace:
        """What is served."""
        trace = self.lengths.trace(self.requests, self.seed) if self.lengths else self.trace or ""
        return make_load(trace, rate=self.rate, requests=self.requests, seed=self.seed)

    def run(self) -> Served:
        """Serve the load."""
        built, load = self.deployment(), self.load()
        arrivals = np.rint(load.arrival_s * PS).astype(np.int64).tolist()
        sequences = [
            Sequence(i, arrival, prompt, output, max(output, (self.context_tokens or 0) - prompt))
            for i, (arrival, prompt, output) in enumerate(
                zip(arrivals, load.input_tokens.tolist(), load.output_tokens.tolist(), strict=True)
            )
        ]
        pool = built.pool
        outcome = jump(sequences, built.scheduler, built.time, pool.blocks, pool.block_tokens, record=True)
        return Served(built, load, outcome)


@dataclass(frozen=True)
class Served:
    """A deployment, its load, and what became of it."""

    deployment: Deployment
    load: Trace
    outcome: Outcome

    @property
    def times_s(self) -> tuple[Floats, Floats]:
        """First and last token of every request that completed."""
        first, finish = (np.array(t, dtype=np.int64) for t in (self.outcome.first_ps, self.outcome.finish_ps))
        done = finish != NEVER
        return first[done] / PS, finish[done] / PS


def _total_throughput(run: Served) -> float:
    """Prompt and output tokens per second and device, from the first arrival to the last token."""
    tokens = int(run.load.input_tokens.sum() + run.load.output_tokens.sum())
    return tokens / float(run.times_s[1].max()) / run.deployment.devices


def _running_requests(run: Served) -> float:
    """Requests between their first and last token, averaged over the time until the last arrival."""
    first, finish = run.times_s
    until = float(run.load.arrival_s[-1])
    return float((np.minimum(finish, until) - np.minimum(first, until)).sum()) / until


def _tbt_p99(run: Served) -> float:
    """99th percentile over output tokens of the time since the token before, where every iteration decodes."""
    gaps: list[Any] = []
    weights: list[Any] = []
    for segment in run.outcome.segments:
        if segment.decoding:
            gaps.append((segment.first_ps + segment.slope_ps * np.arange(segment.count)) / PS)
            weights.append(np.full(segment.count, segment.decoding))
    gap, weight = np.concatenate(gaps), np.concatenate(weights)
    order = np.argsort(gap)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(gap[order][np.searchsorted(reached, 0.99)])


METRICS: dict[str, Metric[Served]] = {
    "total_tokens_per_s_per_device": Metric("higher", _total_throughput),
    "running_requests": Metric("higher", _running_requests),
    "tbt_p99_s": Metric("lower", _tbt_p99),
}
