"""How fast a cluster trains a model of a given size: an architecture of that size, its best layout, its step."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass

import numpy as np

from froude.core.errors import FroudeError
from froude.core.estimate import Estimate
from froude.laws.allocation import TRAIN_FLOPS
from froude.machines.cluster import Cluster, parse_cluster
from froude.models.architecture import Architecture
from froude.training.outcome import step_estimate
from froude.training.plan import Job, Layout
from froude.training.scenario import Scenario
from froude.training.search import search

SEQ_LEN = 4096
# Width over depth. Kaplan et al. (2020), section 3.2: loss hardly depends on it around here; Llama 3's are 102 to 130.
ASPECT = 115.0
HEAD_DIM, KV_HEADS = 128, 8
FFN_RATIO = 3.5  # of width, gated: Llama 3's
LARGE, LARGE_VOCAB, SMALL_VOCAB = 3e9, 128_256, 32_000  # parameters from which Llama 3's vocabulary is assumed
FULL = 4.0  # micro-batches a stage; filling and draining overlap none of those between
SECONDS_PER_HOUR, SECONDS_PER_DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Run:
    """Days and dollars of a run."""

    days: Estimate
    usd: Estimate | None


@dataclass(frozen=True)
class Pace:
    """The best layout's speed for one size and batch."""

    scenario: Scenario
    batch_tokens: float
    step: Estimate
    layout: Layout
    params: float

    def at_batch(self, batch_tokens: float) -> Pace:
        """The same model on the same cluster, tensor and pipeline parallel as here, at another batch."""
        kept = (("tensor_parallel", self.layout.tensor_parallel), ("pipeline_parallel", self.layout.pipeline_parallel))
        return _measure(self.scenario.cluster, self.params, _sequences(batch_tokens), kept)

    def on(self, devices: int) -> Pace:
        """The same model and batch on another number of these devices.

        Raises:
            FroudeError: no layout fits there.
        """
        cluster = self.scenario.cluster.model_copy(update={"count": devices})
        return _measure(cluster, self.params, _sequences(self.batch_tokens), ())

    @property
    def step_s(self) -> float:
        """Seconds per optimizer step."""
        return self.step.value

    @property
    def full(self) -> bool:
        """Whether every stage has so many micro-batches that more only repeat them."""
        layout = self.layout
        rows = self.batch_tokens / SEQ_LEN / layout.data_parallel / layout.micro_batch
        return rows >= FULL * layout.pipeline_parallel

    @property
    def tokens_per_s(self) -> float:
        """Of the whole cluster."""
        return self.batch_tokens / self.step_s

    @property
    def model_flops_per_s(self) -> float:
        """6 N per token, the unit in which laws count, of the architecture at hand."""
        return TRAIN_FLOPS * self.scenario.architecture.parameters * self.tokens_per_s

    def tokens_per_s_of(self, params: float) -> float:
        """Of a model of exactly that size: as many FLOPs per second as the architecture nearest to it."""
        return self.model_flops_per_s / (TRAIN_FLOPS * params)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the pace rests on."""
        arch = self.scenario.architecture
        return (
            f"pace: {arch.layers} layers of width {arch.hidden}, sequences of {SEQ_LEN}, {self.layout.describe()}",
            *self.step.provenance,
        )

    def seconds_for(self, usd: float) -> float:
        """How long the money lasts.

        Raises:
            FroudeError: no price is known for the device.
        """
        cluster = self.scenario.cluster
        if cluster.usd_per_device_hour is None:
            raise FroudeError(f"--usd: no price is known for {cluster.device.name}; give --days or --flops")
        return usd / (cluster.count * cluster.usd_per_device_hour) * SECONDS_PER_HOUR

    def run(self, params: float, tokens: float) -> Run:
        """Days and dollars of training ``params`` on ``tokens`` at this pace, without failures."""
        days = self.step.scaled(tokens / self.tokens_per_s_of(params) / self.step_s / SECONDS_PER_DAY)
        price = self.scenario.cluster.usd_per_device_hour
        usd = None if price is None else days.scaled(24.0 * price * self.scenario.cluster.count)
        return Run(days, usd)


def architecture_of(params: float) -> Architecture:
    """A Llama-like decoder of about that many parameters."""
    vocab = LARGE_VOCAB if params > LARGE else SMALL_VOCAB
    best: Architecture | None = None
    for heads in [*range(1, 8), *range(8, 257, 8)]:
        hidden = heads * HEAD_DIM
        kv_heads = min(KV_HEADS, heads)
        ffn = int(np.ceil(FFN_RATIO * hidden / 256.0)) * 256
        layer = hidden * hidden * 2 + 2 * hidden * kv_heads * HEAD_DIM + 3 * hidden * ffn
        layers = round((params - 2 * vocab * hidden) / layer)
        layers = layers if layers < 8 else round(layers / 4) * 4
        if layers < 1:
            continue
        found = Architecture(
            name=f"{params:.3g} parameters",
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            ffn=ffn,
            vocab=vocab,
        )
        if best is None or _shape_error(found) < _shape_error(best):
            best = found
    if best is None:
        raise FroudeError(f"params: {params:.3g} parameters are too few for a transformer with {vocab} words")
    return best


def _shape_error(arch: Architecture) -> float:
    return abs(float(np.log(arch.hidden / arch.layers / ASPECT)))


def measure_pace(cluster: str, params: float, batch_tokens: float) -> Pace:
    """Predict the best layout for a model of ``params`` parameters at about ``batch_tokens`` per step.

    Raises:
        FroudeError: no layout of that model fits the cluster.
    """
    return _measure(parse_cluster(cluster), float(f"{params:.2g}"), _sequences(batch_tokens), ())


def _sequences(batch_tokens: float) -> int:
    """A power of two, so that neighbouring questions share one search."""
    return int(2 ** max(0, round(float(np.log2(max(batch_tokens, SEQ_LEN) / SEQ_LEN)))))


def rounded(batch_tokens: float) -> float:
    """The batch that a pace at about ``batch_tokens`` has."""
    return float(_sequences(batch_tokens) * SEQ_LEN)


@functools.lru_cache(maxsize=256)
def _found(cluster: str, params: float, sequences: int, kept: tuple[tuple[str, int], ...]) -> Pace:
    job = Job(seq_len=SEQ_LEN, global_batch_tokens=sequences * SEQ_LEN)
    scenario = Scenario(architecture_of(params), Cluster.parse(json.loads(cluster)), job)
    best = search(scenario, keep=1, fixed=dict(kept)).best[0]
    return Pace(scenario, float(job.global_batch_tokens), step_estimate(scenario, best), best.layout, params)


def _measure(cluster: Cluster, params: float, sequences: int, kept: tuple[tuple[str, int], ...]) -> Pace:
    return _found(cluster.model_dump_json(), params, sequences, kept)
