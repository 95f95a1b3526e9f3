"""The `Program` contract: tasks on lanes, written once; evaluated over arrays, played by events, executed for real.

A *lane* is an in-order queue of one device (a CUDA stream, say): its tasks run one after the other in the order they
were added. A task starts when its lane is free and everything in ``after`` has ended. How long it takes is looked up in
``costs`` by key, so that one structure serves every candidate with the same order of work: a cost may hold one number
per candidate. Tasks that overlap on one device share its resources as their demands say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from froude.core.arrays import Array, Floats
from froude.machines.resource import DEVICE_RESOURCES, Resource
from froude.timing.cost import Cost


class Lane(NamedTuple):
    """An in-order queue of one device. In training a device stands for all ranks of one pipeline stage."""

    device: int
    stream: str


class Action(NamedTuple):
    """What a task does: what the runtime executes, and what techniques look for.

    ``kind`` is "forward", "backward", "send-activation", "send-gradient", "gather-weights", "reduce-gradients",
    "optimizer", or a name that a technique and its runtime agree on. ``part`` numbers the pieces of a pass that was
    split so that communication can overlap it; the runtime runs the whole pass at its last part.
    """

    kind: str
    chunk: int = 0
    micro_batch: int = 0
    part: int = 0


class MemoryDelta(NamedTuple):
    """Bytes that a task takes at its start and gives back (negative) at its end: keys of `Program.sizes` and signs."""

    size: str
    at_start: int = 0
    at_end: int = 0


@dataclass(slots=True)
class Task:
    """One node of a program. ``after`` holds the ids of the tasks it waits for."""

    lane: Lane
    cost: str
    action: Action
    after: list[int] = field(default_factory=list)
    memory: tuple[MemoryDelta, ...] = ()

    @property
    def name(self) -> str:
        """A label for people."""
        a = self.action
        return f"{a.kind} {a.micro_batch}" + (f".{a.chunk}" if a.chunk else "") + (f"/{a.part}" if a.part else "")


@dataclass
class Program:
    """Tasks, lanes, and the numbers they refer to.

    Attributes:
        tasks: by id (position).
        lanes: the order of work on each lane, as task ids.
        costs: key -> `Cost`; seconds and demands may be arrays over candidates.
        sizes: key -> bytes, likewise.
        resident: device -> bytes that stay allocated throughout (weights, optimizer states).
        resources: what the tasks of each device share, by the names their demands use.
    """

    tasks: list[Task] = field(default_factory=list)
    lanes: dict[Lane, list[int]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    sizes: dict[str, Array] = field(default_factory=dict)
    resident: dict[int, Array] = field(default_factory=dict)
    resources: dict[str, Resource] = field(default_factory=lambda: dict(DEVICE_RESOURCES))

    def add(
        self,
        lane: Lane,
        cost: str,
        action: Action,
        after: Iterable[int] = (),
        memory: tuple[MemoryDelta, ...] = (),
        position: int | None = None,
    ) -> int:
        """Add a task at the end of its lane, or at ``position`` in the lane's order. Returns its id."""
        task_id = len(self.tasks)
        self.tasks.append(Task(lane, cost, action, list(after), memory))
        order = self.lanes.setdefault(lane, [])
        if position is None:
            order.append(task_id)
        else:
            order.insert(position, task_id)
        return task_id

    def rearrange(self, lanes: Mapping[Lane, Sequence[int]]) -> None:
        """Put every task on a lane anew, in the given orders. What tasks wait for stays."""
        placed = sorted(i for order in lanes.values() for i in order)
        if placed != list(range(len(self.tasks))):
            raise ValueError("every task must be put on exactly one lane")
        self.lanes = {lane: list(order) for lane, order in lanes.items()}
        for lane, order in self.lanes.items():
            for task_id in order:
                self.tasks[task_id].lane = lane

    def position(self, task_id: int) -> int:
        """Where a task stands in the order of its lane: what `add` takes to put another in front of it."""
        return self.lanes[self.tasks[task_id].lane].index(task_id)

    def find(self, kind: str, device: int | None = None) -> list[int]:
        """Ids of the tasks whose action is of that kind (on that device), in lane order."""
        wanted = sorted(lane for lane in self.lanes if device is None or lane.device == device)
        return [i for lane in wanted for i in self.lanes[lane] if self.tasks[i].action.kind == kind]

    @property
    def devices(self) -> list[int]:
        """Devices that have lanes."""
        return sorted({lane.device for lane in self.lanes})

    @property
    def candidates(self) -> int:
        """How many candidates the costs describe."""
        return max((np.size(cost.seconds) for cost in self.costs.values()), default=1)

    def table(self, values: Mapping[str, Array], keys: Sequence[str]) -> Floats:
        """The values of ``keys`` as an array [key, candidate]."""
        width = self.candidates
        return np.stack([np.broadcast_to(np.asarray(values[k], dtype=float), (width,)) for k in keys])

    def predecessors(self) -> list[list[int]]:
        """For each task everything it waits for: its dependencies and the task before it on its lane."""
        waits = [list(task.after) for task in self.tasks]
        for order in self.lanes.values():
            for before, task_id in pairwise(order):
                waits[task_id].append(before)
        return waits

    def select(self, candidate: int) -> Program:
        """The program of one candidate: same tasks, scalar numbers."""
        width = self.candidates

        def pick(value: Array) -> float:
            return float(np.broadcast_to(np.asarray(value, dtype=float), (width,))[candidate])

        return Program(
            self.tasks,
            self.lanes,
            {
                key: Cost(pick(c.seconds), {name: pick(d) for name, d in c.demands.items()}, c.source)
                for key, c in self.costs.items()
            },
            {key: pick(size) for key, size in self.sizes.items()},
            {device: pick(size) for device, size in self.resident.items()},
            self.resources,
        )
