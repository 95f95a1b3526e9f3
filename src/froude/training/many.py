"""Step times of many plans at once: of different models, machines and jobs whose steps do the same kinds of work.

Plans whose work has the same operators and collectives on the same devices are priced together, whatever their sizes;
plans whose steps have the same tasks in the same order are evaluated together, whatever the tasks take. What has been
worked out stays good for other constants.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from froude.core.arrays import Array, Floats
from froude.core.errors import FroudeError
from froude.machines.resource import DEVICE_RESOURCES
from froude.program.evaluate import Levels, evaluate_levels
from froude.timing.constants import Constants
from froude.timing.cost import Cost, CostModel
from froude.timing.roofline import Roofline
from froude.training.build import Composition, Structure, costs_of, skeleton
from froude.training.plan import Layout
from froude.training.price import Priced, price
from froude.training.scenario import Scenario
from froude.training.step import predict, structure_of, work_of_layouts
from froude.training.work import StepWork

ROUNDS = 2
"""Rounds of as many micro-batches as stages after which a pipeline has settled."""


@dataclass(frozen=True)
class _Part:
    """Plans that share a structure, and how many times its makespan counts in the step of each."""

    levels: Levels
    recipes: Mapping[str, tuple[str, Composition]]
    members: tuple[int, ...]
    weights: Floats


class Steps:
    """Plans made ready for pricing.

    Attributes:
        errors: of each plan, why it cannot be predicted, or None.
    """

    def __init__(self, cases: Sequence[tuple[Scenario, Layout]]) -> None:
        self.cases = cases
        self.errors: list[str | None] = [None] * len(cases)
        self._kinds: list[tuple[list[int], StepWork]] = []
        self._parts: list[_Part] = []
        self._alone: list[int] = []
        kinds: dict[Hashable, list[tuple[int, StepWork]]] = {}
        structures: dict[Structure, list[tuple[int, float]]] = {}
        for i, (scenario, layout) in enumerate(cases):
            try:
                objection = scenario.objection(layout)
                if objection is not None:
                    raise FroudeError(f"layout: {objection}")
                if scenario.rewrites_program:
                    self._alone.append(i)
                    continue
                (batch,) = work_of_layouts(scenario, [layout])
                for micro_batches, weight in _rounds(scenario, layout):
                    structure = structure_of(scenario, batch, 0, micro_batches)
                    structures.setdefault(structure, []).append((i, weight))
            except FroudeError as error:
                self.errors[i] = str(error)
                continue
            kinds.setdefault((_machine(scenario), _form(batch.work)), []).append((i, batch.work))
        for found in kinds.values():
            self._kinds.append(([i for i, _ in found], _stacked([work for _, work in found])))
        for structure, uses in structures.items():
            bones = skeleton(structure)
            self._parts.append(
                _Part(bones.levels, bones.costs, tuple(i for i, _ in uses), np.array([weight for _, weight in uses]))
            )

    def seconds(self, constants: Constants | None = None, *, contention: bool = True) -> Floats:
        """Seconds per step of every plan, under these constants if given; NaN where there is an error.

        Args:
            constants: in place of those of the plans' own cost models.
            contention: share resources out between overlapping tasks (see `evaluate`).
        """
        priced: dict[int, tuple[Priced, int]] = {}
        for members, work in self._kinds:
            prices = price(work, _model(self.cases[members[0]][0], constants))
            priced |= {i: (prices, column) for column, i in enumerate(members)}
        total = np.zeros(len(self.cases))
        for part in self._parts:
            costs = costs_of(part.recipes, _gathered([priced[i] for i in part.members]))
            span = evaluate_levels(part.levels, costs, DEVICE_RESOURCES, contention=contention).makespan_s
            np.add.at(total, np.array(part.members), part.weights * span)
        for i, (scenario, layout) in enumerate(self.cases):
            if self.errors[i] is not None:
                total[i] = np.nan
                continue
            model = _model(scenario, constants)
            if i in self._alone:
                total[i] = predict(replace(scenario, model=model), [layout])[0].step_s
            else:
                total[i] = total[i] * float(model.straggling(scenario.cluster.nodes)) + model.step_overhead_s()
        return total


def _rounds(scenario: Scenario, layout: Layout) -> list[tuple[int, float]]:
    """Numbers of micro-batches to evaluate, and how each makespan counts.

    A pipeline's order of work repeats itself: each further round of micro-batches (one per stage) takes the same time
    once the first have filled it, as every max-plus linear system becomes periodic (Baccelli et al. 1992,
    "Synchronization and Linearity", theorem 3.28). Two rounds suffice to 1e-4.
    """
    stages, micro_batches = layout.pipeline_parallel, scenario.micro_batches(layout)
    if layout.virtual_stages > 1 and micro_batches % stages:  # rounds of other sizes: nothing to repeat
        return [(micro_batches, 1.0)]
    few = micro_batches % stages + ROUNDS * stages
    if micro_batches <= few + stages:
        return [(micro_batches, 1.0)]
    further = (micro_batches - few) / stages
    return [(few, 1.0 - further), (few + stages, further)]


def _model(scenario: Scenario, constants: Constants | None) -> CostModel:
    return scenario.costs if constants is None else Roofline(scenario.cluster, scenario.stack, constants)


def _machine(scenario: Scenario) -> Hashable:
    """What prices of the same work depend on; not on how many devices there are."""
    cluster = scenario.cluster
    if scenario.model is not None or scenario.own_machine or cluster.device.tables:
        return id(scenario)
    return (
        cluster.device.name,
        cluster.scaleup_domain,
        cluster.scaleup_bandwidth,
        cluster.scaleout_bandwidth,
        cluster.scaleup_latency_s,
        cluster.scaleout_latency_s,
        cluster.peer_to_peer,
        scenario.stack,
    )


def _form(value: Any) -> Hashable:
    """A value without its numbers."""
    if _is_number(value):
        return "number"
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_form(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return tuple((key, _form(item)) for key, item in value.items())
    if isinstance(value, tuple):
        return tuple(_form(item) for item in value)
    hashable: Hashable = value
    return hashable


def _stacked(values: Sequence[Any]) -> Any:
    """One value of the same form, its numbers arrays over those of ``values``."""
    first = values[0]
    if _is_number(first):
        numbers = np.array([float(np.ravel(value)[0]) for value in values])
        return float(numbers[0]) if (numbers == numbers[0]).all() else numbers
    if is_dataclass(first) and not isinstance(first, type):
        return replace(first, **{f.name: _stacked([getattr(v, f.name) for v in values]) for f in fields(first)})
    if isinstance(first, Mapping):
        return {key: _stacked([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        return tuple(_stacked(items) for items in zip(*values, strict=True))
    return first


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic | np.ndarray) and not isinstance(value, bool)


def _gathered(members: Sequence[tuple[Priced, int]]) -> Priced:
    """The prices of plans, each a column of prices of its own kind."""

    def column(values: Sequence[Array]) -> Floats:
        return np.array(
            [np.ravel(v)[i if np.size(v) > 1 else 0] for v, (_, i) in zip(values, members, strict=True)], dtype=float
        )

    def cost(costs: Sequence[Cost]) -> Cost:
        names = {name for item in costs for name in item.demands}
        demands = {name: column([item.demands.get(name, 0.0) for item in costs]) for name in names}
        return Cost(column([item.seconds for item in costs]), demands)

    merged: dict[str, Any] = {}
    for item in fields(Priced):
        values = [getattr(priced, item.name) for priced, _ in members]
        if isinstance(values[0], Cost):
            merged[item.name] = cost(values)
        else:
            merged[item.name] = {
                key: (cost if isinstance(value, Cost) else column)([other[key] for other in values])
                for key, value in values[0].items()
            }
    return Priced(**merged)
