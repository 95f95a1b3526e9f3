"""How wide the intervals around a predicted step and a predicted peak of memory are, and why."""

from __future__ import annotations

import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any

from froude.training.ledger import memory_constants
from froude.training.step import Scenario


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("accuracy.toml").read_text("utf-8"))


def step_spread(scenario: Scenario) -> tuple[float, str]:
    """Half-width of the 80% interval of a step (a factor above one), and its source."""
    kind = "experts" if scenario.architecture.experts else "dense"
    row = _table()["step"]["profile" if scenario.own_machine else kind]
    return float(row["value"]), str(row["source"])


def memory_spread() -> float:
    """Half-width of the 80% interval of peak memory (a factor above one)."""
    return memory_constants().interval
