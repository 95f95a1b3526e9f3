"""A cluster's own constants, learned from its runs (`froude calibrate`) and used in place of those that ship."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

from froude.core.spec import Spec
from froude.machines.device import Device
from froude.timing.constants import default_constants
from froude.timing.cost import CollectiveKind
from froude.timing.roofline import Roofline

if TYPE_CHECKING:
    from froude.training.scenario import Scenario

Speed = Literal["kernel_speed", "link_speed"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_SECONDS = ("launch_s", "collective_latency_s")
"""Measured figures of a profile that are times; the others are rates."""
_LINKS = ("collective", *get_args(CollectiveKind))
"""How the names of a profile's figures of links begin."""


class Calibration(Spec):
    """What to replace.

    Attributes:
        constants: physical constants of the timing room by dotted name.
        profile: of a machine measured with `froude measure device`, how fast its kernels and links run in training,
            over what was measured alone.
        source: what it was learned from.
    """

    constants: dict[str, Positive] = {}
    profile: dict[Speed, Positive] = {}
    source: str = "calibration"

    def apply(self, scenario: Scenario) -> Scenario:
        """The same scenario under these constants.

        Raises:
            UnknownNameError: for a constant that there is not, naming the nearest.
        """
        constants = default_constants().but(self.constants, self.source)
        cluster = scenario.cluster
        if self.profile and cluster.device.measured:
            cluster = cluster.model_copy(update={"device": self._scaled(cluster.device)})
        return replace(scenario, cluster=cluster, model=Roofline(cluster, scenario.stack, constants))

    def _scaled(self, device: Device) -> Device:
        def figure(name: str, value: float) -> float:
            if name == "processor_share":
                return value
            speed = self.profile.get("link_speed" if name.startswith(_LINKS) else "kernel_speed", 1.0)
            return value / speed if name in _SECONDS else value * speed

        return device.model_copy(update={"measured": {name: figure(name, v) for name, v in device.measured.items()}})
