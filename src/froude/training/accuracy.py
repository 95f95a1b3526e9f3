"""How wide the intervals around a predicted step and a predicted peak of memory are, and why."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from typing import Any

from froude.core.estimate import NORMAL_80
from froude.timing.constants import default_constants
from froude.training.ledger import memory_constants
from froude.training.scenario import Scenario


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("accuracy.toml").read_text("utf-8"))


def step_spread(scenario: Scenario) -> tuple[float, str]:
    """Half-width of the 80% interval of a step (a factor above one), and its source.

    Runs of a site scatter, sites differ, devices without measured kernels are known less well, and nobody knows how
    much the slowest of many nodes holds up the others: independent reasons, whose squares add.
    """
    if scenario.own_machine:
        return _half_width([_deviation("profile")]), str(_table()["profile"]["source"])
    kind = "experts" if scenario.architecture.experts else "dense"
    parts = [_deviation("within", kind), _deviation("between", kind)]
    said = f"{parts[0]:.1%} within a site ({kind}) and {parts[1]:.1%} between sites, standard deviations"
    if not default_constants().measured(scenario.cluster.device.name):
        parts.append(_deviation("unmeasured"))
        said += f", {parts[-1]:.0%} for a device without measured kernels"
    parts.append(_deviation("stragglers") * math.log2(scenario.cluster.nodes))
    return _half_width(parts), f"{said} (docs/accuracy.md)"


def _deviation(*path: str) -> float:
    node = _table()
    for name in path:
        node = node[name]
    return float(node["value"])


def _half_width(deviations: Iterable[float]) -> float:
    return math.exp(NORMAL_80 * math.sqrt(sum(value**2 for value in deviations))) - 1.0


def memory_spread(scenario: Scenario) -> float:
    """Half-width of the 80% interval of peak memory (a factor above one)."""
    constants = memory_constants()
    return constants.interval_experts if scenario.architecture.experts else constants.interval
