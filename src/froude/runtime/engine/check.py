"""Predicted against measured: the simulator, calibrated on this machine, replays what the engine served."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.errors import FroudeError, suggestion
from froude.runtime.engine.calibration import Calibration, fit_iteration_time
from froude.runtime.engine.infer import infer_iteration_time, sequences_of
from froude.runtime.engine.latencies import METRICS, busy_span_s, measured, summaries
from froude.runtime.engine.record import read_measured
from froude.runtime.engine.spec import ServeSpec
from froude.serving.metrics import PS, Latencies
from froude.serving.outcome import Swap
from froude.serving.router import ROUTERS
from froude.serving.simulator import jump
from froude.workloads.trace import make_trace

_CALM = 1.05  # a machine this much slower than its own calibration was disturbed


@dataclass(frozen=True, slots=True)
class OnThisMachine:
    """What is known of a run of the engine beyond its requests.

    Attributes:
        calibration: what the simulator's times came from.
        preemptions: predicted and measured.
        slowdown: time of the run's iterations over what the calibration gives for the very same iterations.
        waited: part of that time in which the processor worked for others.
    """

    calibration: Calibration
    preemptions: tuple[int, int]
    slowdown: float
    waited: float


@dataclass(frozen=True, slots=True)
class RequestsCheck:
    """How well a run was predicted.

    Attributes:
        predicted, measured: the same requests, simulated and real.
        output_tokens: of all the requests.
        on_this_machine: more about a run of the engine here.
    """

    predicted: Latencies
    measured: Latencies
    output_tokens: int
    on_this_machine: OnThisMachine | None = None
    assumptions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def errors(self, metric: str) -> dict[str, float]:
        """Relative errors: of single requests, of the mean, and of two quantiles."""
        predicted, measured = (getattr(which, f"{metric}_s") for which in (self.predicted, self.measured))
        known = np.isfinite(measured)
        predicted, measured = predicted[known], measured[known]
        if not measured.size:
            return dict.fromkeys(("median_ape", "p90_ape", "mean_error", "p50_error", "p99_error"), float("nan"))
        ape = np.abs(predicted / measured - 1.0)

        def quantile(q: float) -> float:
            return float(np.quantile(predicted, q) / np.quantile(measured, q) - 1.0)

        return {
            "median_ape": float(np.median(ape)),
            "p90_ape": float(np.quantile(ape, 0.9)),
            "mean_error": float(predicted.mean() / measured.mean() - 1.0),
            "p50_error": quantile(0.5),
            "p99_error": quantile(0.99),
        }

    def summaries(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Mean and quantiles of each metric, predicted and measured."""
        return summaries(self.predicted), summaries(self.measured)

    @property
    def throughputs(self) -> tuple[float, float]:
        """Output tokens per second, predicted and measured."""
        return self.output_tokens / busy_span_s(self.predicted), self.output_tokens / busy_span_s(self.measured)

    @property
    def throughput_error(self) -> float:
        """Relative error of output tokens per second."""
        predicted, measured = self.throughputs
        return predicted / measured - 1.0

    def json(self) -> dict[str, Any]:
        """As `froude check requests --json` prints it."""
        return {**{metric: self.errors(metric) for metric in METRICS}, "throughput_error": self.throughput_error}


def check_run(run_dir: Path, meta: dict[str, Any], calibrated_on: Path | None = None) -> RequestsCheck:
    """Simulate a run of the engine from its own arrivals, and compare request by request."""
    spec = ServeSpec.parse(meta["spec"], where=str(run_dir / "meta.json"))
    rows = _read_requests(run_dir / "requests.jsonl")
    calibration = calibrate(calibrated_on or run_dir)
    sequences = sequences_of(rows)
    copying = meta.get("copying_s")
    outcome = jump(
        sequences,
        spec.make_scheduler(),
        calibration.time,
        spec.kv_blocks,
        spec.block_tokens,
        replicas=spec.replicas,
        router=ROUTERS.create(spec.router),
        concurrency=spec.concurrency,
        prefix_unit_tokens=meta.get("prefix_block_tokens") if spec.prefix_cache != "none" else None,
        prefixes=spec.prefix_cache,
        swap=Swap(spec.swap_blocks, round(copying[1] * PS), round(copying[0] * PS)) if copying else None,
    )
    columns = ([row[name] for row in rows] for name in ("arrival_time", "input_toks", "output_toks"))
    trace = make_trace(str(run_dir), *columns)
    predicted = Latencies.of(outcome, [sequence.arrival_ps for sequence in sequences], trace)
    seconds, fitted, processor = _iterations(run_dir / "iterations.csv", calibration)
    seen = seconds > 0.0
    warnings = []
    if meta.get("interrupted"):
        warnings.append("the run was interrupted: requests it did not finish are missing from the simulation")
    if seen and seconds / fitted > _CALM:
        warnings.append(f"the machine ran {seconds / fitted - 1:.0%} slower than when it was calibrated")
    longest = max(s.prompt_tokens + s.output_tokens for s in sequences)
    if longest > calibration.longest_sequence:
        warnings.append(f"requests of up to {longest} tokens; calibrated up to {calibration.longest_sequence}")
    return RequestsCheck(
        predicted,
        measured((r["arrival_time"], r["first_token_ts"], r["last_token_ts"], r["output_toks"]) for r in rows),
        output_tokens=sum(sequence.output_tokens for sequence in sequences),
        on_this_machine=OnThisMachine(
            calibration,
            preemptions=(sum(outcome.preemptions), sum(row["preemptions"] for row in rows)),
            slowdown=seconds / fitted if seen else float("nan"),
            waited=max(0.0, 1.0 - processor / seconds) if seen else float("nan"),
        ),
        assumptions=["the simulator serves the arrivals that were recorded, with an equal scheduler and cache"],
        warnings=warnings,
    )


def calibrate(run_dir: Path) -> Calibration:
    """From a run's probes; without any from the iterations of its load; without those from when tokens came."""
    seen = read_measured(run_dir / "calibration.csv") or read_measured(run_dir / "iterations.csv")
    if seen:
        return fit_iteration_time(seen)
    spec = ServeSpec.parse(read_meta(run_dir / "meta.json")["spec"], where=str(run_dir / "meta.json"))
    return infer_iteration_time(spec, _read_requests(run_dir / "requests.jsonl"))


def _iterations(path: Path, calibration: Calibration) -> tuple[float, float, float]:
    """Seconds measured, seconds the calibration gives for the same iterations, seconds of processor time."""
    measured = read_measured(path)
    fitted = sum(calibration.time.segment(m.decoding, m.context, m.prompts)[0] for m in measured) / PS
    return sum(m.duration_s for m in measured), fitted, sum(m.processor_s for m in measured)


def read_meta(path: Path) -> dict[str, Any]:
    """A run's `meta.json`.

    Raises:
        FroudeError: when it is missing, damaged, or says nothing of the engine.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FroudeError(f"{path}: no such file; give the folder of a serving run") from None
    except (OSError, ValueError) as error:
        raise FroudeError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(meta, dict) or not ("spec" in meta or isinstance(meta.get("engine_kwargs"), dict)):
        raise FroudeError(f"{path}: says nothing of the engine: it has neither 'spec' nor 'engine_kwargs'")
    return meta


def _read_requests(path: Path) -> list[dict[str, Any]]:
    needed = ("input_toks", "output_toks", "arrival_time", "first_token_ts", "last_token_ts", "preemptions")
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            row = json.loads(line)
            for name in needed:
                if name not in row:
                    raise FroudeError(f"{path}: line {number} has no {name!r}; {suggestion(name, row)}")
            rows.append(row)
    except FileNotFoundError:
        raise FroudeError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise FroudeError(f"{path}: not readable as JSON lines, perhaps truncated ({error})") from None
    if not rows:
        raise FroudeError(f"{path}: holds no request")
    return sorted(rows, key=lambda row: float(row["arrival_time"]))
