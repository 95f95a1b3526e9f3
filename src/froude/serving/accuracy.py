"""How wide the 80% intervals around a served load's latencies and throughput are, and why."""

from __future__ import annotations

import math
import tomllib
from functools import lru_cache
from importlib import resources
from typing import Any

from froude.core.estimate import NORMAL_80
from froude.machines.device import Device
from froude.models.architecture import Architecture
from froude.timing.constants import default_constants


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("accuracy.toml").read_text("utf-8"))


def serve_spread(metric: str, arch: Architecture, device: Device) -> float:
    """Half-width of the 80% interval of a mean over requests (a factor above one).

    Args:
        metric: ``ttft``, ``tpot``, ``e2e``, or ``throughput`` where the engine, not the load, sets it.
        arch, device: what runs on what: mixtures of experts, and devices without measured kernels, are known less well.
    """
    table = _table()
    deviation = float(table[metric]["experts" if arch.experts else "dense"]["value"])
    if not default_constants().measured(device.name):
        deviation = math.hypot(deviation, float(table["unmeasured"]["value"]))
    return math.exp(NORMAL_80 * deviation) - 1.0
