"""Prediction and reality by turns: calibrated on one load, the simulator predicts others, which are then served.

Loads are served in pieces of a few seconds, by turns, and before every piece a slice of the load that is calibrated on.
The coefficients of an iteration's time come from all slices, their common level from those beside a piece, so that a
machine whose pace wanders is followed. Rates are shares of what a closed loop of as many clients as the engine takes
gets done, so that the same shares mean the same on any machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from froude.runtime.engine.api import make_arrivals
from froude.runtime.engine.calibration import FittedIterationTime, Measured, fit_iteration_time, seconds_of
from froude.runtime.engine.hosts import Host, open_host
from froude.runtime.engine.latencies import busy_span_s, logged
from froude.runtime.engine.replay import Log
from froude.runtime.engine.spec import ServeSpec
from froude.serving.metrics import Latencies
from froude.serving.simulator import jump

MODEL = {"name": "small", "layers": 4, "hidden": 256, "heads": 8, "kv_heads": 4, "ffn": 768, "vocab": 4096}
BASE: dict[str, Any] = {
    "model": MODEL,
    "max_seqs": 16,
    "chunk_tokens": 256,
    "kv_blocks": 256,
    "block_tokens": 32,
    "calibration_s": 0,
}
MIX = "lognormal:in=150,out=40,cv=0.8"
CALIBRATED_SHARE = 0.55
LOADS = (
    ("low rate", MIX, 0.35),
    ("high rate", MIX, 0.7),
    ("long prompts", "lognormal:in=400,out=20,cv=0.8", 0.5),
    ("long outputs", "lognormal:in=60,out=80,cv=0.8", 0.5),
)
SCHEDULERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("orca", {}),
    ("vllm-v1", {}),
    ("sarathi-serve", {"chunk_tokens": 32}),
    ("shortest-job", {}),
    ("s3", {}),
    ("fair", {}),
)
# What tells them apart: an overload, a tight cache, clients of unequal appetite, and requests that may generate more
# than they do. Simulated times lie a tenth or more from one another, which a machine's noise does not turn round.
CONTENTION: dict[str, Any] = {
    "trace": f"{MIX},clients=4",
    "kv_blocks": 48,
    "max_tokens": 120,
}
CONTENTION_SHARE = 1.2
PIECE_S = 1.5  # of a load at a time: the pace of a machine wanders within seconds, and only slices close by can tell
CONTEST_S = 4.0  # of the contended load at a time: queues need seconds to build up
_CALM = 0.03  # part of the time that an otherwise idle machine takes for itself


@dataclass(frozen=True, slots=True)
class LoadCheck:
    """One load, predicted and served.

    Attributes:
        name, rate: the load.
        predicted, measured: the same requests.
        throughput: output tokens per second, predicted and measured.
        pace: time of the load's iterations over what was fitted for the very same iterations.
        waited: part of that time in which the processor worked for others.
    """

    name: str
    rate: float
    predicted: Latencies
    measured: Latencies
    throughput: tuple[float, float]
    pace: float
    waited: float

    def error(self, metric: str) -> float:
        """Median relative error of single requests."""
        predicted, measured = (getattr(which, f"{metric}_s") for which in (self.predicted, self.measured))
        return float(np.nanmedian(np.abs(predicted / measured - 1.0)))

    def json(self) -> dict[str, Any]:
        """As `froude check twin --json` prints it."""
        return {
            "rate": self.rate,
            "requests": len(self.measured.ttft_s),
            **{metric: self.error(metric) for metric in ("ttft", "tpot", "e2e")},
            "throughput_error": self.throughput[0] / self.throughput[1] - 1.0,
            "p99_ttft_s": [float(np.quantile(which.ttft_s, 0.99)) for which in (self.predicted, self.measured)],
            "pace": self.pace,
            "waited": self.waited,
        }


@dataclass(slots=True)
class EngineCheck:
    """What was predicted of one engine.

    Attributes:
        engine: its name.
        iterations, median_ape: of the calibration: how many, and how well the fit describes them.
        loads: other loads.
        schedulers: one contended load under each scheduler.
    """

    engine: str
    iterations: int = 0
    median_ape: float = float("nan")
    loads: list[LoadCheck] = field(default_factory=list)
    schedulers: list[LoadCheck] = field(default_factory=list)

    @property
    def spearman(self) -> float | None:
        """Rank correlation of the schedulers' p99 TTFT, predicted and measured."""
        if not self.schedulers:
            return None
        p99 = np.array([check.json()["p99_ttft_s"] for check in self.schedulers])
        return float(spearmanr(p99[:, 0], p99[:, 1]).statistic)

    def json(self) -> dict[str, Any]:
        """As `froude check twin --json` prints it."""
        rows = [load.json() for load in self.loads]
        return {
            "calibration": {"iterations": self.iterations, "median_ape": self.median_ape},
            "loads": {load.name: row for load, row in zip(self.loads, rows, strict=True)},
            "median": {
                **{metric: float(np.median([row[metric] for row in rows])) for metric in ("ttft", "tpot", "e2e")},
                "throughput": float(np.median([abs(row["throughput_error"]) for row in rows])),
            },
            "schedulers": {check.name: check.json() for check in self.schedulers},
            "spearman_p99_ttft": self.spearman,
        }


@dataclass(frozen=True, slots=True)
class TwinCheck:
    """All engines.

    Attributes:
        engines: in the order in which they were asked.
        seconds: how long it took.
        load_average: of the machine over the last minute, before and after.
    """

    engines: list[EngineCheck]
    seconds: float
    load_average: tuple[float, float]

    @property
    def warnings(self) -> list[str]:
        """What disturbed the measurement."""
        waited = max(load.waited for check in self.engines for load in (*check.loads, *check.schedulers))
        if waited < _CALM:
            return []
        return [
            f"others used this machine: the processor was elsewhere for up to {waited:.0%} of a load's iterations "
            f"(load average {self.load_average[0]:.1f} before, {self.load_average[1]:.1f} after)"
        ]

    def json(self) -> dict[str, Any]:
        """As `froude check twin --json` prints it."""
        return {
            "engines": {check.engine: check.json() for check in self.engines},
            "seconds": self.seconds,
            "load_average": list(self.load_average),
        }


def check_twin(
    engines: Iterable[str] | None = None,
    *,
    seconds: float = 12.0,
    clock: str = "wall",
    seed: int = 0,
    on_progress: Callable[[str, float], None] | None = None,
) -> TwinCheck:
    """Calibrate on one load, predict four others, serve them; then six schedulers on one contended load.

    Args:
        engines: ``froude`` (with six schedulers) and ``vllm`` (which has its own); by default those installed.
        seconds: of each load, slices of the calibration a third of that.
        clock: ``processor`` leaves out the time that others had the processor.
        seed: of lengths and arrivals.
        on_progress: told what is going on, and how much is done.

    Raises:
        FroudeError: when an engine is unknown or not installed.
    """
    say = on_progress or (lambda what, done: None)
    begun, load_before = time.perf_counter(), os.getloadavg()[0]
    checks: list[EngineCheck] = []
    names = list(engines) if engines else ["froude", *(["vllm"] if find_spec("vllm") else [])]
    for place, name in enumerate(names):

        def tell(what: str, done: float, place: int = place, name: str = name) -> None:
            say(f"{name}: {what}", (place + done) / len(names))

        base = ServeSpec.parse({**BASE, "engine": name, "clock": clock, "trace": MIX, "seed": seed})
        checks.append(_Session(open_host(base), base, seconds, tell).check())
    return TwinCheck(checks, time.perf_counter() - begun, (load_before, os.getloadavg()[0]))


@dataclass(slots=True)
class _Piece:
    """Some seconds of a load, and how many slices had been served before it."""

    name: str
    spec: ServeSpec
    log: Log
    slices: int


class _Session:
    """Loads served by turns on one engine, with slices of the calibration load between them."""

    def __init__(self, host: Host, base: ServeSpec, seconds: float, say: Callable[[str, float], None]) -> None:
        self.host, self.base, self.seconds, self.say = host, base, seconds, say
        self.slices: list[list[Measured]] = []
        self.slice_rate = 0.0

    def check(self) -> EngineCheck:
        """Everything, in turn."""
        self.say("warming up", 0.0)
        per_s = self._capacity(MIX)
        self.slice_rate = CALIBRATED_SHARE * per_s
        most = {mix: self._capacity(mix) for mix in dict.fromkeys(mix for _, mix, _ in LOADS)}
        loads = [(name, self._at({"trace": mix}, share * most[mix], PIECE_S)) for name, mix, share in LOADS]
        contended = []
        if self.base.engine == "froude":
            rate = CONTENTION_SHARE * per_s
            contended = [
                (n, self._at({**CONTENTION, "scheduler": n, **knobs}, rate, CONTEST_S)) for n, knobs in SCHEDULERS
            ]
        half = 0.5 if contended else 1.0
        pieces = self._by_turns(loads, PIECE_S, 0.1, half)
        contests = self._by_turns(contended, CONTEST_S, half, 1.0)
        fitted = fit_iteration_time([m for part in self.slices for m in part])
        found = EngineCheck(self.base.engine, fitted.iterations, fitted.median_ape)
        for name, _ in loads:
            own = [piece for piece in pieces if piece.name == name]
            found.loads.append(
                _compare(own, [fitted.time.scaled(self._level(fitted.time, p.slices - 1, p.slices + 1)) for p in own])
            )
        # In each round one level for all schedulers, so that nothing but the schedulers tells them apart.
        each = len(contended)
        paces = [self._level(fitted.time, p.slices - 1, p.slices + each) for p in contests[::each]] if each else []
        for name, _ in contended:
            own = [piece for piece in contests if piece.name == name]
            found.schedulers.append(_compare(own, [fitted.time.scaled(pace) for pace in paces]))
        return found

    def _by_turns(self, loads: list[tuple[str, ServeSpec]], piece_s: float, begun: float, done: float) -> list[_Piece]:
        rounds = self._rounds(piece_s)
        pieces = []
        for number in range(rounds):
            for place, (name, spec) in enumerate(loads):
                part = (number * len(loads) + place) / (rounds * len(loads))
                self.say(name, begun + (done - begun) * part)
                self._slice(rounds)
                spec = spec.model_copy(update={"seed": spec.seed + number})
                pieces.append(_Piece(name, spec, self._serve(spec), len(self.slices)))
        if loads:
            self._slice(rounds)
        return pieces

    def _rounds(self, piece_s: float) -> int:
        return max(1, round(self.seconds / piece_s))

    def _level(self, iteration_time: FittedIterationTime, first: int, last: int) -> float:
        """The machine's pace in those slices."""
        seen = [m for part in self.slices[first:last] for m in part]
        return sum(m.duration_s for m in seen) / seconds_of(iteration_time, seen)

    def _capacity(self, mix: str) -> float:
        """Requests per second of a closed loop of as many clients as the engine takes, in about two seconds."""
        spec = self.base.model_copy(update={"trace": mix, "requests": 40, "concurrency": self.base.max_seqs})
        log = self._serve(spec)
        return len(log.requests) / log.duration_s

    def _at(self, change: dict[str, Any], rate: float, piece_s: float) -> ServeSpec:
        requests = max(8, round(rate * self.seconds / self._rounds(piece_s)))
        update = {**change, "rate": rate, "requests": requests, "seed": self.base.seed + 1}
        return self.base.model_copy(update=update)

    def _slice(self, rounds: int) -> None:
        requests = max(6, round(self.slice_rate * self.seconds / rounds / 3))
        seed = self.base.seed + 1000 + len(self.slices)
        spec = self.base.model_copy(update={"rate": self.slice_rate, "requests": requests, "seed": seed})
        self.slices.append([iteration.measured for iteration in self._serve(spec).iterations])

    def _serve(self, spec: ServeSpec) -> Log:
        arrivals = make_arrivals(spec, spec.load(), self.host.vocab)
        self.host.check(spec, arrivals)
        log = self.host.serve(spec, arrivals)
        if log.interrupted:
            raise KeyboardInterrupt
        return log


def predict(spec: ServeSpec, iteration_time: FittedIterationTime) -> Latencies:
    """What the simulator says about the requests of a replay, arriving when they were due."""
    trace = spec.load()
    sequences = spec.sequences(trace)
    outcome = jump(
        sequences,
        spec.make_scheduler(),
        iteration_time,
        spec.kv_blocks,
        spec.block_tokens,
        concurrency=spec.concurrency,
    )
    return Latencies.of(outcome, [sequence.arrival_ps for sequence in sequences], trace)


def _compare(pieces: list[_Piece], times: list[FittedIterationTime]) -> LoadCheck:
    """The pieces of one load, each predicted with its own time."""
    predicted = [predict(piece.spec, time) for piece, time in zip(pieces, times, strict=True)]
    measured = [logged(piece.log) for piece in pieces]
    iterations = [[iteration.measured for iteration in piece.log.iterations] for piece in pieces]
    took_s = sum(m.duration_s for part in iterations for m in part)
    tokens = sum(piece.log.output_tokens for piece in pieces)
    return LoadCheck(
        pieces[0].name,
        pieces[0].spec.rate or 0.0,
        _joined(predicted),
        _joined(measured),
        (tokens / sum(map(busy_span_s, predicted)), tokens / sum(map(busy_span_s, measured))),
        pace=took_s / sum(seconds_of(time, part) for time, part in zip(times, iterations, strict=True)),
        waited=max(0.0, 1.0 - sum(m.processor_s for part in iterations for m in part) / took_s),
    )


def _joined(parts: list[Latencies]) -> Latencies:
    names = ("arrival_s", "ttft_s", "tpot_s", "e2e_s", "request")
    return Latencies(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
