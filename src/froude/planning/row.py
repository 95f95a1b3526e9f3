"""A row of inference servers under one power budget: how many servers fit, and what capping costs whom.

Every server is a device of one `Program`: batches of requests arrive, their prompts are computed (a spike of power),
then they decode. A controller sees the row's meter and lowers clocks in mid-phase; what is left of a phase is work, and
work that waits for memory is not slowed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Annotated

import numpy as np
from pydantic import Field

from froude.core.arrays import Floats
from froude.core.spec import Spec
from froude.machines.cluster import Cluster, parse_cluster
from froude.machines.power import PowerModel
from froude.models.catalogue import resolve
from froude.program.play import Played, play
from froude.program.program import Action, Lane, Program
from froude.serving.controller import PowerController
from froude.serving.engine_spec import find_engine
from froude.serving.iteration_program import STEPS, Content, layer_work
from froude.serving.technique import ServingContext
from froude.timing.cost import Cost
from froude.timing.roofline import Roofline

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


@lru_cache(maxsize=1)
def _assumed() -> dict[str, float]:
    raw = tomllib.loads(resources.files(__package__).joinpath("row.toml").read_text("utf-8"))
    return {name: float(row["value"]) for name, row in raw.items()}


class Row(Spec):
    """Servers, and what they serve.

    Attributes:
        model, server, engine: what runs on one server, all of whose devices hold the model together.
        servers: how many there are.
        budget_servers: for how many the row's power was provisioned, at ``provisioned_w`` each.
        low_priority_share: of the servers, every so-manieth one.
        batch: requests that a server takes at once.
        prompt_tokens, output_tokens: means of log-normal lengths of a batch; ``spread`` is their standard deviation.
        load: share of the time that a server would be busy at full clocks.
        duration_s: over which batches arrive.
    """

    model: str = "bigscience/bloom"
    server: str = "a100-sxm-80gb:8"
    engine: str = "vllm"
    servers: Count = 40
    budget_servers: Count = 40
    provisioned_w: Positive = Field(default_factory=lambda: _assumed()["provisioned_w"])
    waiting_share: Annotated[float, Field(ge=0, le=1)] = Field(default_factory=lambda: _assumed()["waiting_share"])
    low_priority_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    batch: Count = 16
    prompt_tokens: Positive = 2048.0
    output_tokens: Positive = 256.0
    spread: Annotated[float, Field(ge=0)] = 0.5
    load: Annotated[float, Field(gt=0, lt=1)] = 0.7
    duration_s: Positive = 3600.0
    seed: int = 0

    @property
    def budget_w(self) -> float:
        """What the row may draw."""
        return self.budget_servers * self.provisioned_w

    @property
    def low_priority(self) -> frozenset[int]:
        """Servers of low priority, spread evenly."""
        share = self.low_priority_share
        return frozenset(i for i in range(self.servers) if int((i + 1) * share + 1e-9) > int(i * share + 1e-9))


@dataclass(frozen=True)
class RowRun:
    """What a row did.

    Attributes:
        latency_s: batch by batch from arrival to last token: server -> seconds, in order of arrival.
        peak_share, mean_share: of the budget, drawn by the whole row.
        capped_s: server-seconds below full clock.
        played: everything.
    """

    row: Row
    latency_s: Mapping[int, Floats]
    peak_share: float
    mean_share: float
    capped_s: float
    played: Played = field(repr=False)

    def of_priority(self, *, low: bool) -> Floats:
        """Latencies of all batches of one priority class."""
        chosen = [s for s in self.latency_s if (s in self.row.low_priority) == low]
        return np.concatenate([self.latency_s[s] for s in chosen]) if chosen else np.zeros(0)


def simulate_row(row: Row, controller: PowerController | None = None) -> RowRun:
    """Play a row of servers, with or without somebody to lower their clocks."""
    cluster = parse_cluster(row.server)
    program, batches = row_program(row, cluster)
    power = _Meter(cluster, row.waiting_share)
    played = play(program, controllers=[controller] if controller is not None else [], power=power)
    start, end = played.timeline.start_s[:, 0], played.timeline.end_s[:, 0]
    latency = {
        server: np.array([end[decode] - end[arrival] for arrival, decode in pairs]) for server, pairs in batches.items()
    }
    span = float(end.max() - start.min())
    times = np.array([t for t, _ in played.power] + [span])
    watts = np.array([w for _, w in played.power])
    return RowRun(
        row,
        latency,
        float(watts.max()) / row.budget_w,
        float((watts * np.diff(times)).sum() / span) / row.budget_w,
        _capped_s(played, span),
        played,
    )


def row_program(row: Row, cluster: Cluster) -> tuple[Program, dict[int, list[tuple[int, int]]]]:
    """The row as a program, and per server the (arrival, decode) tasks of its batches.

    Waiting for a batch to arrive is a task that asks for nothing, on a lane of its own: clocks do not touch it. A
    server's arrivals depend on the seed and its number alone, so that adding servers changes nothing for the others.
    """
    engine = find_engine(row.engine)
    context = ServingContext(resolve(row.model), cluster, engine, Roofline(cluster, engine.stack), cluster.count)
    program = Program()
    batches: dict[int, list[tuple[int, int]]] = {}
    typical = sum(float(cost.seconds) for cost in _phases(row.prompt_tokens, row.output_tokens, row.batch, context))
    for server in range(row.servers):
        rng = np.random.default_rng((row.seed, server))
        now, count = 0.0, 0
        while True:
            gap = float(rng.exponential(typical / row.load))
            prompt, output = (
                max(1.0, round(mean * float(np.exp(row.spread * rng.standard_normal() - row.spread**2 / 2))))
                for mean in (row.prompt_tokens, row.output_tokens)
            )
            now += gap
            if now > row.duration_s:
                break
            key = f"{server}.{count}"
            program.costs[f"arrival:{key}"] = Cost(gap)
            prefill, decode = _phases(prompt, output, row.batch, context)
            program.costs[f"prefill:{key}"], program.costs[f"decode:{key}"] = prefill, decode
            arrival = program.add(Lane(server, "arrivals"), f"arrival:{key}", Action("arrival", 0, count))
            first = program.add(Lane(server, "engine"), f"prefill:{key}", Action("prefill", 0, count), [arrival])
            last = program.add(Lane(server, "engine"), f"decode:{key}", Action("decode", 0, count), [first])
            batches.setdefault(server, []).append((arrival, last))
            count += 1
    return program, batches


def _phases(prompt: float, output: float, batch: int, context: ServingContext) -> tuple[Cost, Cost]:
    """All prompts of a batch in one iteration; then one iteration per token, at the mean context."""

    def iteration(content: Content) -> Cost:
        work = layer_work(content, context)
        items = [item for step in STEPS for item in work[step]]
        return context.cost.sequence(items).times(context.arch.layers)

    tokens = batch * prompt
    prefill = iteration(Content(0.0, 0.0, tokens, batch * prompt * (prompt + 1) / 2, tokens))
    decode = iteration(Content(float(batch), batch * (prompt + output / 2)))
    return _scalar(prefill), _scalar(decode.times(output))


def _scalar(cost: Cost) -> Cost:
    demands = {name: float(np.asarray(demand)) for name, demand in cost.demands.items()}
    return Cost(float(np.asarray(cost.seconds)), demands, cost.source)


class _Meter:
    """Watts of one server from the use of its devices' resources."""

    def __init__(self, cluster: Cluster, waiting_share: float) -> None:
        self.device = PowerModel.of(cluster.device)
        self.count, self.rest_w, self.waiting = cluster.count, cluster.nodes * cluster.node_overhead_w, waiting_share

    def __call__(self, used: Mapping[str, float], clock: float) -> float:
        memory = min(1.0, used.get("memory", 0.0))
        # Use is counted against full clock; power wants the share of the time at this clock.
        computing = min(1.0, used.get("compute", 0.0) / clock)
        waiting = max(0.0, max(memory, computing) - computing) * self.waiting
        return self.count * float(self.device.watts(computing + waiting, memory, clock)) + self.rest_w


def _capped_s(played: Played, span: float) -> float:
    since: dict[int, float] = {}
    total = 0.0
    for now, device, fraction in played.clocks:
        if fraction < 1.0:
            since.setdefault(device, now)
        elif device in since:
            total += now - since.pop(device)
    return total + sum(span - start for start in since.values())
