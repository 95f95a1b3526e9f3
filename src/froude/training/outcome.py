"""From a step to a whole run: days, dollars, kilowatt-hours and carbon."""

from __future__ import annotations

from dataclasses import dataclass

from froude.core.estimate import Estimate
from froude.machines.cluster import Cluster
from froude.machines.power import PowerModel
from froude.training.accuracy import step_spread
from froude.training.scenario import Scenario
from froude.training.step import StepPrediction

SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True)
class Outcome:
    """What a run of ``tokens`` takes at a step's pace, without failures; None where a price or figure is not known."""

    days: Estimate
    usd: Estimate | None
    kwh: Estimate
    kg_co2e: Estimate


def step_estimate(scenario: Scenario, prediction: StepPrediction) -> Estimate:
    """Step time with its 80% interval."""
    spread, source = step_spread(scenario)
    return Estimate.relative(prediction.step_s, spread, source)


def outcome(scenario: Scenario, prediction: StepPrediction) -> Outcome | None:
    """Totals of the job's tokens; None when the job names no tokens."""
    job, cluster = scenario.job, scenario.cluster
    if job.tokens is None:
        return None
    steps = job.tokens / job.global_batch_tokens
    duration = step_estimate(scenario, prediction).scaled(steps)
    device_hours = duration.scaled(cluster.count / 3600.0)
    kwh = duration.scaled(cluster_watts(cluster, prediction) / 3.6e6)
    return Outcome(
        days=duration.scaled(1.0 / SECONDS_PER_DAY),
        usd=None if cluster.usd_per_device_hour is None else device_hours.scaled(cluster.usd_per_device_hour),
        kwh=kwh,
        kg_co2e=kwh.scaled(cluster.kg_co2e_per_kwh),
    )


def cluster_watts(cluster: Cluster, prediction: StepPrediction) -> float:
    """Mean draw of the whole cluster at the meter: devices by utilisation, nodes around them, the facility's overhead.

    Devices are taken as busy whenever their compute lane is: a bubble idles, a memory-bound kernel does not.
    """
    power = PowerModel.of(cluster.device)
    busy = 1.0 - prediction.bubble_fraction
    devices = cluster.count * float(power.watts(busy, busy))
    return (devices + cluster.nodes * cluster.node_overhead_w) * cluster.pue
