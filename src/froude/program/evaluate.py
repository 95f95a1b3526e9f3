"""Evaluate a program over arrays of candidates: the longest path, and the peak of memory, for all of them at once.

Without contention this is exact: it equals playing the program by events. Where tasks of one device overlap and ask for
more of a resource than there is, durations are stretched until timeline and sharing agree (a fixed point).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.machines.resource import Resource
from froude.program.program import Lane, Program
from froude.timing.cost import Cost

MAX_ROUNDS = 12
TOLERANCE = 1e-5  # of the makespan, between rounds


@dataclass(frozen=True)
class Timeline:
    """When every task starts and ends: arrays [task, candidate], in seconds."""

    start_s: Floats
    end_s: Floats

    @property
    def makespan_s(self) -> Floats:
        """Time from the first start to the last end, per candidate."""
        if not len(self.end_s):
            return np.zeros(1)
        span: Floats = self.end_s.max(axis=0) - self.start_s.min(axis=0)
        return span


@dataclass(frozen=True)
class Levels:
    """A program's structure, ready for arrays; worked out once and good for any numbers.

    Attributes:
        tasks: ids grouped so that each group depends on earlier groups only.
        waits: of each group, [task, predecessor], padded with the number of tasks, whose end is time zero.
        cost_keys, cost_of: the costs there are, and which of them each task has.
        lanes: each lane's tasks, in order.
        held: of each lane that changes memory, which sizes, and how many of each are held at its distinct moments.
    """

    tasks: tuple[np.ndarray, ...]
    waits: tuple[np.ndarray, ...]
    cost_keys: tuple[str, ...]
    cost_of: np.ndarray
    lanes: tuple[tuple[Lane, np.ndarray], ...]
    held: tuple[tuple[Lane, tuple[str, ...], np.ndarray], ...]


def compile_levels(program: Program) -> Levels:
    """Group tasks by depth.

    Raises:
        FroudeError: when dependencies and lane orders contradict each other (a deadlock).
    """
    waits = program.predecessors()
    count = len(waits)
    followers: list[list[int]] = [[] for _ in range(count)]
    missing = [len(w) for w in waits]
    for task_id, before in enumerate(waits):
        for b in before:
            followers[b].append(task_id)
    level = [i for i in range(count) if missing[i] == 0]
    groups: list[list[int]] = []
    done = 0
    while level:
        groups.append(level)
        done += len(level)
        following: list[int] = []
        for task_id in level:
            for f in followers[task_id]:
                missing[f] -= 1
                if missing[f] == 0:
                    following.append(f)
        level = following
    if done < count:
        stuck = next(i for i in range(count) if missing[i] > 0)
        raise FroudeError(f"program: deadlock, task {program.tasks[stuck].name!r} waits for work that waits for it")
    tables = []
    for group in groups:
        width = max(1, max(len(waits[i]) for i in group))
        table = np.full((len(group), width), count, dtype=np.intp)
        for row, task_id in enumerate(group):
            table[row, : len(waits[task_id])] = waits[task_id]
        tables.append(table)
    keys = tuple(dict.fromkeys(task.cost for task in program.tasks))
    index = {key: i for i, key in enumerate(keys)}
    return Levels(
        tasks=tuple(np.array(g, dtype=np.intp) for g in groups),
        waits=tuple(tables),
        cost_keys=keys,
        cost_of=np.fromiter((index[task.cost] for task in program.tasks), dtype=np.intp, count=count),
        lanes=tuple((lane, np.array(order, dtype=np.intp)) for lane, order in sorted(program.lanes.items()) if order),
        held=tuple(_held(program, lane, order) for lane, order in sorted(program.lanes.items())),
    )


def _held(program: Program, lane: Lane, order: list[int]) -> tuple[Lane, tuple[str, ...], np.ndarray]:
    deltas: list[tuple[str, int]] = []
    for task_id in order:
        memory = program.tasks[task_id].memory
        deltas += [(m.size, m.at_start) for m in memory if m.at_start]
        deltas += [(m.size, m.at_end) for m in memory if m.at_end]
    keys = tuple(dict.fromkeys(size for size, _ in deltas))
    changes = np.zeros((len(deltas), len(keys)))
    for row, (size, sign) in enumerate(deltas):
        changes[row, keys.index(size)] = sign
    return lane, keys, np.unique(np.cumsum(changes, axis=0), axis=0) if deltas else changes


def evaluate(program: Program, levels: Levels | None = None, *, contention: bool = True) -> Timeline:
    """Start and end of every task for every candidate.

    Args:
        program: what to evaluate.
        levels: `compile_levels(program)`, when the structure is used more than once.
        contention: share resources between overlapping tasks; False gives each task its time alone.
    """
    return evaluate_levels(levels or compile_levels(program), program.costs, program.resources, contention=contention)


def evaluate_levels(
    levels: Levels, costs: Mapping[str, Cost], resources: Mapping[str, Resource], *, contention: bool = True
) -> Timeline:
    """Like `evaluate`, of a structure whose tasks themselves are no longer at hand."""
    if not levels.tasks:
        return Timeline(np.zeros((0, 1)), np.zeros((0, 1)))
    width = max(np.size(costs[key].seconds) for key in levels.cost_keys)
    seconds = np.stack([np.broadcast_to(np.asarray(costs[key].seconds, float), (width,)) for key in levels.cost_keys])
    alone = seconds[levels.cost_of]
    timeline = _longest_path(levels, alone)
    contended = _contended_devices(levels, costs, resources, width) if contention else []
    if not contended:
        return timeline
    for _ in range(MAX_ROUNDS):
        stretched = alone.copy()
        for candidate in range(alone.shape[1]):
            for device in contended:
                _stretch(device, timeline, alone, stretched, candidate)
        before, timeline = timeline.makespan_s, _longest_path(levels, stretched)
        if (np.abs(timeline.makespan_s - before) <= TOLERANCE * before).all():
            break
    return timeline


def peak_memory(program: Program, levels: Levels | None = None) -> dict[int, Floats]:
    """Peak bytes of each device and candidate, from the order of work alone.

    Deltas are taken in lane order, lane by lane: exact when all deltas of a device lie on one lane, as the activations
    of a pipeline stage do; an upper bound otherwise.
    """
    levels = levels or compile_levels(program)
    width = program.candidates
    peaks = {
        device: np.broadcast_to(np.asarray(program.resident.get(device, 0.0), dtype=float), (width,)).copy()
        for device in program.devices
    }
    for lane, keys, counts in levels.held:
        if keys:
            peaks[lane.device] += np.maximum((counts @ program.table(program.sizes, keys)).max(axis=0), 0.0)
    return peaks


def _longest_path(levels: Levels, durations: Floats) -> Timeline:
    count, width = durations.shape
    end = np.zeros((count + 1, width))
    start = np.zeros((count, width))
    for tasks, waits in zip(levels.tasks, levels.waits, strict=True):
        begin = end[waits[:, 0]]
        for column in range(1, waits.shape[1]):
            begin = np.maximum(begin, end[waits[:, column]])
        start[tasks] = begin
        end[tasks] = begin + durations[tasks]
    return Timeline(start, end[:count])


@dataclass(frozen=True)
class _Device:
    """The tasks of one device that can contend, with their demands [task, resource, candidate]."""

    tasks: np.ndarray
    demands: np.ndarray
    patterns: tuple[tuple[np.ndarray, np.ndarray], ...]  # (resources in use, tasks that use just those)


def _contended_devices(
    levels: Levels, costs: Mapping[str, Cost], resources: Mapping[str, Resource], width: int
) -> list[_Device]:
    """Devices with several lanes whose demands can add up to more than there is."""
    used_costs = [costs[key] for key in levels.cost_keys]
    names = sorted({name for cost in used_costs for name in cost.demands})
    table = np.zeros((len(used_costs), len(names), width))
    for row, cost in enumerate(used_costs):
        for column, name in enumerate(names):
            table[row, column] = cost.demands.get(name, 0.0) / resources[name].capacity
    devices = []
    for device in sorted({lane.device for lane, _ in levels.lanes}):
        lanes = [ids for lane, ids in levels.lanes if lane.device == device]
        if len(lanes) < 2:
            continue
        most = np.sum([table[np.unique(levels.cost_of[ids])].max(axis=0) for ids in lanes], axis=0)
        crowded = (most > 1.0 + 1e-12).any(axis=1)
        if not crowded.any():
            continue
        tasks = np.concatenate(lanes)
        used = table[:, crowded]
        pattern_of = np.any(used > 0.0, axis=2)
        kinds = levels.cost_of[tasks]
        patterns = tuple(
            (pattern, np.flatnonzero(np.all(pattern_of[kinds] == pattern, axis=1)))
            for pattern in np.unique(pattern_of[np.unique(kinds)], axis=0)
            if pattern.any()
        )
        devices.append(_Device(tasks, used[kinds], patterns))
    return devices


def _stretch(device: _Device, timeline: Timeline, alone: Floats, durations: Floats, candidate: int) -> None:
    """Write the durations that the given timeline implies: all overlapping tasks of a resource slow down alike."""
    ids = device.tasks
    start, end = timeline.start_s[ids, candidate], timeline.end_s[ids, candidate]
    demands = device.demands[:, :, candidate]
    times = np.concatenate([start, end])
    order = np.argsort(times, kind="stable")
    moments = times[order]
    changes = np.concatenate([demands, -demands])[order]
    load = np.cumsum(changes, axis=0)
    widths = np.append(np.diff(moments), 0.0)
    speed = 1.0 / np.maximum(load, 1.0)  # [moment, resource]
    for pattern, members in device.patterns:
        rate = speed[:, pattern].min(axis=1)
        rate[-1] = 1.0
        # Work done by time t by a task that runs throughout; its inverse gives when a task that starts at s is done.
        work = np.concatenate([[0.0], np.cumsum(rate * widths)])[:-1]
        span = moments[-1] - moments[0] + alone[ids, candidate].sum() + 1.0
        grid_t = np.append(moments, moments[-1] + span)
        grid_w = np.append(work, work[-1] + span)
        begun = np.interp(start[members], grid_t, grid_w)
        finish = np.interp(begun + alone[ids[members], candidate], grid_w, grid_t)
        durations[ids[members], candidate] = np.maximum(finish - start[members], alone[ids[members], candidate])
