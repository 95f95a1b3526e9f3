"""Controllers that change the batch along a training run, simulated or real: see `froude.program.controller`."""

from __future__ import annotations

from typing import TypeAlias

from froude.core.registry import Registry
from froude.program.controller import Controller, GradientObservation, SetBatch

BatchController: TypeAlias = Controller[GradientObservation, SetBatch]

batch_controllers: Registry[BatchController] = Registry("controller", "froude.training.controllers", Controller)
