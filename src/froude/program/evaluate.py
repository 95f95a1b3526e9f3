"""Evaluate a program over arrays of candidates: the longest path, and the peak of memory, for all of them at once.

Without contention this is exact: it equals playing the program by events. Where tasks of one device overlap and ask for
more of a resource than there is, durations are stretched until timeline and sharing agree (a fixed point).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.program.program import Program

MAX_ROUNDS = 12
TOLERANCE = 1e-5


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
    """A program's structure, ready for arrays: tasks grouped so that each group depends on earlier groups only."""

    tasks: tuple[np.ndarray, ...]
    waits: tuple[np.ndarray, ...]  # [task, predecessor]; padded with the number of tasks, whose end is time zero


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
    return Levels(tuple(np.array(g, dtype=np.intp) for g in groups), tuple(tables))


def evaluate(program: Program, levels: Levels | None = None, *, contention: bool = True) -> Timeline:
    """Start and end of every task for every candidate.

    Args:
        program: what to evaluate.
        levels: `compile_levels(program)`, when the structure is used more than once.
        contention: share resources between overlapping tasks; False gives each task its time alone.
    """
    levels = levels or compile_levels(program)
    alone = _durations(program)
    timeline = _longest_path(levels, alone)
    if not contention or not len(alone):
        return timeline
    contended = _contended_devices(program)
    if not contended:
        return timeline
    stretched = alone
    for _ in range(MAX_ROUNDS):
        wanted = stretched.copy()
        for candidate in range(alone.shape[1]):
            for device in contended:
                _stretch(device, timeline, alone, wanted, candidate)
        moved = np.abs(wanted - stretched).max(initial=0.0)
        stretched = wanted
        timeline = _longest_path(levels, stretched)
        if moved <= TOLERANCE * timeline.makespan_s.max():
            break
    return timeline


def peak_memory(program: Program) -> dict[int, Floats]:
    """Peak bytes of each device and candidate, from the order of work alone.

    Deltas are taken in lane order, lane by lane: exact when all deltas of a device lie on one lane, as the activations
    of a pipeline stage do; an upper bound otherwise.
    """
    keys = list(program.sizes)
    sizes = program.table(program.sizes, keys) if keys else np.zeros((0, program.candidates))
    index = {key: i for i, key in enumerate(keys)}
    peaks: dict[int, Floats] = {}
    for device in program.devices:
        base = np.broadcast_to(np.asarray(program.resident.get(device, 0.0), dtype=float), (program.candidates,))
        peak = base.copy()
        for lane, order in program.lanes.items():
            if lane.device != device:
                continue
            deltas: list[tuple[int, int]] = []
            for task_id in order:
                memory = program.tasks[task_id].memory
                deltas += [(index[m.size], m.at_start) for m in memory if m.at_start]
                deltas += [(index[m.size], m.at_end) for m in memory if m.at_end]
            if deltas:
                which, sign = np.array(deltas).T
                # How many of each size are held at every moment, for all candidates; then the dearest moment of each.
                held = np.zeros((len(deltas), len(keys)))
                held[np.arange(len(deltas)), which] = sign
                peak = peak + np.maximum((np.cumsum(held, axis=0) @ sizes).max(axis=0), 0.0)
        peaks[device] = peak
    return peaks


def _durations(program: Program) -> Floats:
    keys = list(program.costs)
    if not program.tasks:
        return np.zeros((0, 1))
    index = {key: i for i, key in enumerate(keys)}
    table = program.table({k: c.seconds for k, c in program.costs.items()}, keys)
    durations: Floats = table[np.fromiter((index[t.cost] for t in program.tasks), dtype=np.intp)]
    return durations


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


def _contended_devices(program: Program) -> list[_Device]:
    """Devices with several lanes whose demands can add up to more than there is."""
    devices = []
    width = program.candidates
    for device in program.devices:
        lanes = [lane for lane in program.lanes if lane.device == device and program.lanes[lane]]
        if len(lanes) < 2:
            continue
        tasks = [i for lane in lanes for i in program.lanes[lane]]
        names = sorted({name for i in tasks for name in program.costs[program.tasks[i].cost].demands})
        capacity = np.array([program.resources[name].capacity for name in names])
        keys = list(dict.fromkeys(program.tasks[i].cost for i in tasks))
        table = np.zeros((len(keys), len(names), width))
        for row, key in enumerate(keys):
            for column, name in enumerate(names):
                table[row, column] = program.costs[key].demands.get(name, 0.0) / capacity[column]
        index = {key: row for row, key in enumerate(keys)}
        demands = table[[index[program.tasks[i].cost] for i in tasks]]
        lane_of = {lane: n for n, lane in enumerate(lanes)}
        lane_index = np.array([lane_of[program.tasks[i].lane] for i in tasks])
        most = np.stack([demands[lane_index == n].max(axis=0) for n in range(len(lanes))])
        crowded = (most.sum(axis=0) > 1.0 + 1e-12).any(axis=1)
        if crowded.any():
            demands = demands[:, crowded]
            users = (demands > 0.0).any(axis=2)
            patterns = [(p, np.flatnonzero((users == p).all(axis=1))) for p in np.unique(users, axis=0) if p.any()]
            devices.append(_Device(np.array(tasks, dtype=np.intp), demands, tuple(patterns)))
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
