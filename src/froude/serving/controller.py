"""Controllers that set the clocks of serving machines from what they draw: see `froude.program.controller`."""

from __future__ import annotations

from typing import TypeAlias

from froude.core.registry import Registry
from froude.program.controller import Controller, PowerObservation, SetClocks

PowerController: TypeAlias = Controller[PowerObservation, SetClocks]

power_controllers: Registry[PowerController] = Registry("controller", "froude.serving.controllers", Controller)
