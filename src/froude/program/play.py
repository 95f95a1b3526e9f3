"""Play a program by events: the oracle of the analytic evaluation, and the way to simulate what varies in time.

A running task has *work left*, counted in seconds alone; the rate at which it is done follows from who else is running
on the device and from the clocks that controllers set. So a clock lowered in mid-task stretches what remains of it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from froude.core.errors import FroudeError
from froude.program.controller import Controller, PowerObservation, SetClocks
from froude.program.evaluate import Timeline
from froude.program.program import Program

PowerModel = Callable[[Mapping[str, float], float], float]
"""(utilisation by resource, relative clock) -> watts of one device."""


@dataclass(frozen=True)
class Played:
    """What happened.

    Attributes:
        timeline: start and end of every task, arrays [task, 1].
        peak_bytes: device -> highest memory, and when it was reached is on the trace.
        memory: device -> (time, bytes) at every change.
        energy_j: device -> energy, when a power model was given.
        power: (time, watts of all devices) at every change, when a power model was given.
        clocks: (time, device, fraction) of every change that a controller made.
    """

    timeline: Timeline
    peak_bytes: dict[int, float]
    memory: dict[int, list[tuple[float, float]]]
    energy_j: dict[int, float] = field(default_factory=dict)
    power: list[tuple[float, float]] = field(default_factory=list)
    clocks: list[tuple[float, int, float]] = field(default_factory=list)


def play(
    program: Program,
    *,
    candidate: int = 0,
    contention: bool = True,
    controllers: Sequence[Controller[PowerObservation, SetClocks]] = (),
    power: PowerModel | None = None,
) -> Played:
    """Run the tasks of one candidate in simulated time.

    Args:
        program: what to play.
        candidate: which candidate's numbers to use.
        contention: share resources between overlapping tasks by max-min fairness; False runs each at full rate.
        controllers: asked at their own `next_change_s`; what they return takes effect at once.
        power: power of one device; needed when there are controllers.

    Raises:
        FroudeError: when the program deadlocks.
    """
    return _Player(program.select(candidate), contention, controllers, power).run()


class _Player:
    def __init__(
        self,
        program: Program,
        contention: bool,
        controllers: Sequence[Controller[PowerObservation, SetClocks]],
        power: PowerModel | None,
    ) -> None:
        self.program, self.contention, self.controllers, self.power_model = program, contention, controllers, power
        count = len(program.tasks)
        self.start = np.zeros((count, 1))
        self.end = np.zeros((count, 1))
        waits = program.predecessors()
        self.missing = [len(w) for w in waits]
        self.followers: list[list[int]] = [[] for _ in range(count)]
        for task_id, before in enumerate(waits):
            for b in before:
                self.followers[b].append(task_id)
        self.demands = {key: {n: float(d) for n, d in c.demands.items() if d > 0} for key, c in program.costs.items()}
        self.left = [float(program.costs[t.cost].seconds) for t in program.tasks]
        self.rate = [0.0] * count
        self.updated = [0.0] * count
        self.version = [0] * count
        self.running: dict[int, list[int]] = {device: [] for device in program.devices}
        self.clock = dict.fromkeys(program.devices, 1.0)
        self.heap: list[tuple[float, int, int]] = []
        self.held = {device: float(program.resident.get(device, 0.0)) for device in program.devices}
        self.memory = {device: [(0.0, held)] for device, held in self.held.items()}
        self.watts = dict.fromkeys(program.devices, self._watts({}, 1.0))
        self.watts_since = dict.fromkeys(program.devices, 0.0)
        self.energy = dict.fromkeys(program.devices, 0.0)
        self.total_watts = sum(self.watts.values())
        self.power: list[tuple[float, float]] = [(0.0, self.total_watts)]
        self.clock_changes: list[tuple[float, int, float]] = []

    def run(self) -> Played:
        tasks = self.program.tasks
        done = 0
        self._begin([i for i in range(len(tasks)) if self.missing[i] == 0], 0.0)
        now = 0.0
        while done < len(tasks):
            wake = min((c.next_change_s(now) for c in self.controllers), default=math.inf)
            while self.heap and self.version[self.heap[0][1]] != self.heap[0][2]:
                heapq.heappop(self.heap)  # superseded by a change of rate
            if self.heap and self.heap[0][0] <= wake:
                now, task_id, _ = heapq.heappop(self.heap)
                done += 1
                self._finish(task_id, now)
            elif math.isfinite(wake):
                now = wake
                self._control(now)
            else:
                stuck = next(i for i in range(len(tasks)) if self.missing[i] > 0)
                raise FroudeError(f"program: deadlock, task {tasks[stuck].name!r} waits for work that waits for it")
        for device in self.program.devices:
            self._meter(device, now, self.watts[device])
        peaks = {device: max(held for _, held in changes) for device, changes in self.memory.items()}
        metered = self.power_model is not None
        return Played(
            Timeline(self.start, self.end),
            peaks,
            self.memory,
            self.energy if metered else {},
            self.power if metered else [],
            self.clock_changes,
        )

    def _begin(self, task_ids: list[int], now: float) -> None:
        touched = set()
        for task_id in task_ids:
            task = self.program.tasks[task_id]
            self.start[task_id] = now
            self.updated[task_id] = now
            self.running[task.lane.device].append(task_id)
            touched.add(task.lane.device)
            self._allocate(task_id, now, at_start=True)
        for device in touched:
            self._share(device, now)

    def _finish(self, task_id: int, now: float) -> None:
        device = self.program.tasks[task_id].lane.device
        self.end[task_id] = now
        self.version[task_id] = -1
        self.running[device].remove(task_id)
        self._allocate(task_id, now, at_start=False)
        ready = []
        for follower in self.followers[task_id]:
            self.missing[follower] -= 1
            if self.missing[follower] == 0:
                ready.append(follower)
        if all(self.program.tasks[i].lane.device != device for i in ready):
            self._share(device, now)
        self._begin(ready, now)

    def _allocate(self, task_id: int, now: float, *, at_start: bool) -> None:
        task = self.program.tasks[task_id]
        device = task.lane.device
        for delta in task.memory:
            sign = delta.at_start if at_start else delta.at_end
            if sign:
                self.held[device] += sign * float(self.program.sizes[delta.size])
                self.memory[device].append((now, self.held[device]))

    def _share(self, device: int, now: float) -> None:
        """Give every running task of the device its rate, and reschedule those whose rate changed."""
        running = self.running[device]
        rates = self._rates(running, self.clock[device])
        for task_id, rate in zip(running, rates, strict=True):
            if rate != self.rate[task_id]:
                self.left[task_id] -= self.rate[task_id] * (now - self.updated[task_id])
                self.updated[task_id] = now
                self.rate[task_id] = rate
                self.version[task_id] += 1
                finish = now + max(self.left[task_id], 0.0) / rate
                heapq.heappush(self.heap, (finish, task_id, self.version[task_id]))
        if self.power_model is not None:
            drawn: dict[str, float] = {}
            for task_id, share in zip(running, rates, strict=True):
                for name, demand in self.demands[self.program.tasks[task_id].cost].items():
                    drawn[name] = drawn.get(name, 0.0) + demand * share
            self._meter(device, now, self._watts(drawn, self.clock[device]))

    def _rates(self, running: list[int], clock: float) -> list[float]:
        """Each task's rate: progressive filling over max-min resources, under the limits of proportional ones."""
        if not self.contention:
            return [clock] * len(running)
        demands = [self.demands[self.program.tasks[i].cost] for i in running]
        limits = [1.0] * len(running)
        free: dict[str, float] = {}
        for name in {name for needed in demands for name in needed}:
            resource = self.program.resources[name]
            room = resource.capacity * (clock if resource.clocked else 1.0)
            wanted = sum(needed.get(name, 0.0) for needed in demands)
            if resource.sharing == "max-min":
                free[name] = room
            elif wanted > room:
                for i, needed in enumerate(demands):
                    if name in needed:
                        limits[i] = min(limits[i], room / wanted)
        return _fill(demands, limits, free)

    def _control(self, now: float) -> None:
        observed = PowerObservation(now, dict(self.watts))
        for controller in self.controllers:
            for device, fraction in controller.observe(observed).fraction.items():
                if self.clock.get(device) not in (None, fraction):
                    self.clock[device] = fraction
                    self.clock_changes.append((now, device, fraction))
                    self._share(device, now)

    def _watts(self, used: Mapping[str, float], clock: float) -> float:
        return self.power_model(used, clock) if self.power_model is not None else 0.0

    def _meter(self, device: int, now: float, watts: float) -> None:
        before = self.watts[device]
        self.energy[device] += before * (now - self.watts_since[device])
        self.watts_since[device] = now
        if watts != before:
            self.watts[device] = watts
            self.total_watts += watts - before
            self.power.append((now, self.total_watts))


def _fill(demands: list[dict[str, float]], limits: list[float], free: dict[str, float]) -> list[float]:
    """Max-min fair rates: all grow together; a task stops at its limit or when something it needs is used up."""
    rates = [0.0] * len(demands)
    growing = set(range(len(demands)))
    while growing:
        level, full = min(limits[i] for i in growing), None
        for name, room in free.items():
            wanted = sum(demands[i].get(name, 0.0) for i in growing)
            if wanted > 0 and room / wanted < level:
                level, full = room / wanted, name
        stopped = {i for i in growing if (limits[i] <= level if full is None else full in demands[i])}
        for i in stopped:
            rates[i] = level
            for name, demand in demands[i].items():
                if name in free:
                    free[name] = max(0.0, free[name] - demand * level)
        growing -= stopped
    return rates
