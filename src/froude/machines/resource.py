"""The `Resource` contract: what tasks contend for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Resource:
    """Something tasks contend for.

    Attributes:
        name: "compute" (a device's multiprocessors), "memory" (its memory bandwidth), "scaleup", "scaleout", "host".
        sharing: "max-min" gives each task what it asks, and evens out what is short; "proportional" scales all tasks
            alike; "exclusive" runs one task at a time.
        capacity: what there is, in units of the demand that saturates it: 1 is the whole of it. It may change in time
            (a lowered clock, a degraded link): what remains of a task is work, not seconds.
        power_w: what it draws, beyond idle, when used to the full.
    """

    name: str
    sharing: Literal["max-min", "proportional", "exclusive"] = "max-min"
    capacity: float = 1.0
    power_w: float = 0.0
