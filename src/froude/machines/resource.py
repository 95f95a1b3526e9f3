"""The `Resource` contract: what tasks of a device contend for, and how it is shared out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Resource:
    """Something the tasks of a device share. A task's demand is the fraction of it that the task uses when alone.

    Attributes:
        name: as in `Cost.demands`.
        sharing: "max-min" lets all rates grow together until the resource is full, and those that need less of
            something else grow on; "proportional" slows all its users by the factor it is overcommitted, whether or not
            they are slowed elsewhere (as kernels that take turns are).
        capacity: what there is; 1 is the whole of it. It may vary in time: what remains of a task is work, not seconds.
        clocked: whether its capacity follows the device's clock.
    """

    name: str
    sharing: Literal["max-min", "proportional"] = "max-min"
    capacity: float = 1.0
    clocked: bool = False


DEVICE_RESOURCES = {
    "compute": Resource("compute", clocked=True),  # the multiprocessors
    "memory": Resource("memory"),  # bandwidth of the device's memory, which has a clock of its own
    "scaleup": Resource("scaleup"),
    "scaleout": Resource("scaleout"),
    "host": Resource("host"),
}
"""What every device has."""
