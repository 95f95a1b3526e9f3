"""Which mechanisms most likely explain a measured step: each suspect re-predicts the step and is weighed.

A constant is moved to its most plausible value given the measurement (prior density times likelihood); a choice that
may differ from the plan has a prior probability. One suspect at a time: causes that act together are not told apart.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np

from froude.core.errors import FroudeError, InvalidValueError
from froude.timing.constants import Constant, default_constants
from froude.training.calibration import Calibration, Speed
from froude.training.measured import predicted_step_s, settled
from froude.training.plan import Layout
from froude.training.scenario import Scenario

FARTHEST = 4.0
"""Prior standard deviations that a constant is moved at most."""
ROUNDS = 2
LEAST_EFFECT = 1e-3
"""A suspect that moves the step by less, as a fraction, is none."""


@dataclass(frozen=True)
class Suspect:
    """One possible cause of a gap between prediction and measurement.

    Attributes:
        name: what would be so.
        constant: name of the constant that differs; empty where it is a choice.
        assumed, needed: its value in the prediction, and the most plausible one given the measurement.
        sigmas: how far that is from the assumed, in prior standard deviations (of the logarithm, for a constant).
        predicted_step_s: the step predicted with it.
        plausibility: posterior weight among all suspects; they add up to 1.
        check: how to find out.
    """

    name: str
    constant: str
    assumed: float | str
    needed: float | str
    sigmas: float
    predicted_step_s: float
    plausibility: float
    check: str


@dataclass(frozen=True)
class _Weighed:
    suspect: Suspect
    log_weight: float


def rank_suspects(
    scenario: Scenario, layout: Layout, measured_step_s: float, known: Calibration | None = None
) -> list[Suspect]:
    """Suspects by plausibility, given what a step took.

    ``known`` are constants learned from this cluster; others are suspected beside them.

    Raises:
        FroudeError: when the measured step is no duration, or the plan is impossible.
    """
    if not math.isfinite(measured_step_s) or measured_step_s <= 0:
        raise InvalidValueError("measured-step-s", measured_step_s, "is not a duration in seconds above 0")
    known = known or Calibration()
    base_s = predicted_step_s(known.apply(scenario), layout)
    weighed = [
        *_constants(scenario, layout, known, measured_step_s, base_s),
        *_speeds(scenario, layout, known, measured_step_s, base_s),
        *_choices(scenario, layout, known, measured_step_s, base_s),
    ]
    if not weighed:
        return []
    logs = np.array([item.log_weight for item in weighed])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    found = [replace(item.suspect, plausibility=float(w)) for item, w in zip(weighed, weights, strict=True)]
    return sorted(found, key=lambda s: (-s.plausibility, s.name))


def _constants(
    scenario: Scenario, layout: Layout, known: Calibration, measured_s: float, base_s: float
) -> Iterator[_Weighed]:
    table = default_constants().table
    for name, constant in table.items():
        entry = _entry(name)
        if entry is None or not _uncertain(constant) or not _concerns(name, scenario):
            continue
        value = known.constants.get(name, float(constant.value))
        sigma = constant.prior[1] if constant.prior else float(entry["sigma"])
        most = math.log(entry["most"] / value) / sigma if "most" in entry else FARTHEST

        def step_s(z: float, name: str = name, value: float = value, sigma: float = sigma) -> float:
            moved = {**known.constants, name: value * math.exp(sigma * z)}
            return predicted_step_s(known.model_copy(update={"constants": moved}).apply(scenario), layout)

        found = _most_plausible(step_s, measured_s, base_s, (-FARTHEST, min(FARTHEST, most)))
        if found is not None:
            z, predicted_s = found
            needed = value * math.exp(sigma * z)
            suspect = Suspect(entry["name"], name, value, needed, z, predicted_s, 0.0, entry["check"])
            yield _Weighed(suspect, -0.5 * z**2 + _log_likelihood(predicted_s, measured_s))


def _speeds(
    scenario: Scenario, layout: Layout, known: Calibration, measured_s: float, base_s: float
) -> Iterator[_Weighed]:
    """A profile's figures are its own: what differs is how fast the machine is now."""
    if not scenario.own_machine:
        return
    for entry in _table()["profile"]:
        speed: Speed = entry["speed"]
        sigma, value = float(entry["sigma"]), known.profile.get(speed, 1.0)

        def step_s(z: float, speed: Speed = speed, sigma: float = sigma, value: float = value) -> float:
            moved = {**known.profile, speed: value * math.exp(sigma * z)}
            return predicted_step_s(known.model_copy(update={"profile": moved}).apply(scenario), layout)

        found = _most_plausible(step_s, measured_s, base_s, (-FARTHEST, FARTHEST))
        if found is not None:
            z, predicted_s = found
            needed = value * math.exp(sigma * z)
            suspect = Suspect(entry["name"], speed, value, needed, z, predicted_s, 0.0, entry["check"])
            yield _Weighed(suspect, -0.5 * z**2 + _log_likelihood(predicted_s, measured_s))


def _choices(
    scenario: Scenario, layout: Layout, known: Calibration, measured_s: float, base_s: float
) -> Iterator[_Weighed]:
    for entry in _table()["choice"]:
        changed, other, assumed, needed = _chosen(entry, scenario, layout)
        if assumed == needed or changed.objection(other) is not None:
            continue
        try:
            predicted_s = predicted_step_s(known.apply(changed), other)
        except FroudeError:
            continue
        if abs(predicted_s / base_s - 1.0) < LEAST_EFFECT:
            continue
        probability = float(entry["probability"])
        log_odds = math.log(probability / (1.0 - probability))
        if other is not layout:  # what ran did fit
            log_odds += math.log(max(settled(changed, other).p_fit, 1e-6))
        sigmas = math.sqrt(max(0.0, -2.0 * log_odds))
        suspect = Suspect(entry["name"], "", assumed, needed, sigmas, predicted_s, 0.0, entry["check"])
        yield _Weighed(suspect, log_odds + _log_likelihood(predicted_s, measured_s))


def _chosen(entry: dict[str, Any], scenario: Scenario, layout: Layout) -> tuple[Scenario, Layout, str, str]:
    """Scenario and layout with another choice, and both choices in words."""
    if "stack" in entry:
        before = {field: getattr(scenario.stack, field) for field in entry["stack"]}
        stack = scenario.stack.but(**entry["stack"])
        return replace(scenario, stack=stack), layout, _words(before), _words(entry["stack"])
    if "layout" in entry:
        before = {field: getattr(layout, field) for field in entry["layout"]}
        other = Layout.parse({**layout.model_dump(), **entry["layout"]})
        return scenario, other, _words(before), _words(entry["layout"])
    before = {field: getattr(scenario.cluster, field) for field in entry["cluster"]}
    after = {field: before[field] * factor for field, factor in entry["cluster"].items()}
    cluster = scenario.cluster.model_copy(update=after)
    return replace(scenario, cluster=cluster), layout, _words(before), _words(after)


def _words(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in fields.items())


def _most_plausible(
    step_s: Callable[[float], float], measured_s: float, base_s: float, bounds: tuple[float, float]
) -> tuple[float, float] | None:
    """Displacement of greatest prior times likelihood, and the step there; None where the step does not follow.

    The logarithm of the step is smooth and monotone in a constant's: a few points on the side that leads towards the
    measurement describe it, and what is returned was predicted, not interpolated.
    """
    low, high = bounds
    probe = min(1.0, high) if high > 0.25 else -1.0
    effect = math.log(step_s(probe) / base_s)
    if abs(effect) < LEAST_EFFECT:
        return None
    gap = math.log(measured_s / base_s)
    towards = math.copysign(1.0, probe) * (1.0 if effect * gap > 0 else -1.0)
    end = high if towards > 0 else low
    if abs(end) < 1e-9:
        return None
    known = {0.0: 0.0}
    known.update((z, math.log(step_s(z) / base_s)) for z in (0.25 * end, 0.5 * end, end))
    fine = np.linspace(0.0, end, 401)
    for _ in range(ROUNDS):  # what hides behind other work makes corners: look again where the answer lies
        points = np.array(sorted(known))
        curve = np.interp(fine, points, [known[z] for z in points])
        merit = -0.5 * fine**2 - 0.5 * ((curve - gap) / _noise()) ** 2
        best = float(fine[int(np.argmax(merit))])
        if best not in known:
            known[best] = math.log(step_s(best) / base_s)
    best = max(known, key=lambda z: -0.5 * z**2 - 0.5 * ((known[z] - gap) / _noise()) ** 2)
    return best, base_s * math.exp(known[best])


def _log_likelihood(predicted_s: float, measured_s: float) -> float:
    return -0.5 * (math.log(predicted_s / measured_s) / _noise()) ** 2


def _uncertain(constant: Constant) -> bool:
    return isinstance(constant.value, (int, float)) and (constant.prior is not None or constant.estimated)


def _concerns(name: str, scenario: Scenario) -> bool:
    """Whether the stack uses a mechanism's constant; saves predicting those that cannot matter."""
    kind, which, *_ = f"{name}.".split(".")
    if kind == "clock":
        return which in (default_constants().generation(scenario.cluster.device.name), "other")
    if kind in ("fusion", "host") and name != "host.smoothness":
        return bool(which == getattr(scenario.stack, kind))
    return kind != "step" or not scenario.own_machine


def _entry(name: str) -> dict[str, Any] | None:
    """The family a constant belongs to: the longest prefix of its dotted name."""
    fitting = [e for e in _table()["constant"] if name == e["prefix"] or name.startswith(f"{e['prefix']}.")]
    return max(fitting, key=lambda e: len(e["prefix"]), default=None)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("suspects.toml").read_text("utf-8"))


def _noise() -> float:
    return float(_table()["noise"]["value"])
