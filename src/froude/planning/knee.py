"""Time to a target loss against batch and devices: where longer steps stop buying fewer of them.

Steps fall with batch along the hyperbola of the critical batch, the machine's step time rises with it, and more devices
shorten the step only while the batch keeps them busy. The knee is where the three meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from froude.core.errors import FroudeError
from froude.laws.gradient_noise import examples_to_target
from froude.laws.library.critical_batch import OVERHEAD
from froude.planning.pace import SECONDS_PER_DAY, Pace, rounded

BATCHES = 2.0 ** np.arange(-2, 6)  # of the law's best batch, on the cluster asked for
DEVICES = (0.25, 0.5, 2.0, 4.0)  # of the cluster's, beside itself
BATCHES_ELSEWHERE = 4.0 ** np.arange(-1, 3)  # coarser: their order of magnitude is the question


@dataclass(frozen=True)
class TargetPoint:
    """Time to the same loss at one batch on so many devices."""

    devices: int
    batch_tokens: float
    step_s: float
    tokens: float
    days: float

    def json(self) -> dict[str, float]:
        """Plain data."""
        return {
            "devices": self.devices,
            "batch_tokens": self.batch_tokens,
            "step_s": self.step_s,
            "tokens": self.tokens,
            "days": self.days,
            "device_days": self.days * self.devices,
        }


def time_to_target(
    best: Pace, params: float, tokens: float, best_batch: float, critical: float
) -> tuple[TargetPoint, ...]:
    """Days to the loss that ``tokens`` at ``best_batch`` reach, on this cluster and on smaller and larger ones.

    ``critical`` is the batch that spends `OVERHEAD` more data than the smallest batches would.
    """
    points = _on(best, BATCHES, params, tokens, best_batch, critical)
    for share in DEVICES:
        count = round(best.scenario.cluster.count * share)
        if count < 1 or (count > 1 and count % min(best.scenario.cluster.devices_per_node, count)):
            continue
        try:
            points += _on(best.on(count), BATCHES_ELSEWHERE, params, tokens, best_batch, critical)
        except FroudeError:  # the model fits no layout there
            continue
    return tuple(sorted(points, key=lambda point: (point.devices, point.batch_tokens)))


def fastest(points: tuple[TargetPoint, ...]) -> tuple[TargetPoint, ...]:
    """The batch worth using on each number of devices: the one that gets there first."""
    counts = sorted({point.devices for point in points})
    return tuple(min((p for p in points if p.devices == n), key=lambda point: point.days) for n in counts)


def knee(points: tuple[TargetPoint, ...]) -> TargetPoint | None:
    """The most devices that still spend at most `OVERHEAD` more device time than the thriftiest."""
    best = fastest(points)
    if not best:
        return None
    least = min(point.days * point.devices for point in best)
    return [point for point in best if point.days * point.devices <= (1.0 + OVERHEAD) * least][-1]


def _on(
    pace: Pace, multiples: np.ndarray, params: float, tokens: float, best_batch: float, critical: float
) -> list[TargetPoint]:
    doubling = critical / OVERHEAD  # the batch that needs twice the least data
    least_steps = tokens / (best_batch + doubling)
    points: dict[float, TargetPoint] = {}
    paces: list[Pace] = []
    for multiple in np.sort(multiples):
        try:
            at = _at(pace, paces, float(best_batch * multiple))
        except FroudeError:  # fewer sequences than the devices can share
            continue
        paces.append(at)
        needed = float(examples_to_target(least_steps, doubling, at.batch_tokens))
        days = needed / at.tokens_per_s_of(params) / SECONDS_PER_DAY
        points[at.batch_tokens] = TargetPoint(at.scenario.cluster.count, at.batch_tokens, at.step_s, needed, days)
    return list(points.values())


def _at(pace: Pace, smaller: Sequence[Pace], batch_tokens: float) -> Pace:
    """The pace at a batch; once pipelines are long full, from two smaller ones, for which a step only grows by more of
    the same micro-batches."""
    if len(smaller) < 2 or not (smaller[-2].full and smaller[-1].layout == smaller[-2].layout):
        return pace.at_batch(batch_tokens)
    first, last = smaller[-2:]
    slope = (last.step_s - first.step_s) / (last.batch_tokens - first.batch_tokens)
    batch = rounded(batch_tokens)
    step_s = last.step_s + slope * (batch - last.batch_tokens)
    return replace(last, batch_tokens=batch, step=last.step.scaled(step_s / last.step_s))
