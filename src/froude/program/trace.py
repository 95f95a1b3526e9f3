"""Timelines as Chrome trace events, which Perfetto (ui.perfetto.dev) opens. Predicted and real runs share this form."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from froude.core.spec import write_atomically
from froude.program.evaluate import Timeline
from froude.program.program import Program


def trace_events(program: Program, timeline: Timeline, candidate: int = 0) -> list[dict[str, object]]:
    """One complete event per task (microseconds); a device is a process, a lane a thread."""
    streams = sorted({lane.stream for lane in program.lanes})
    events = _names(program.devices, streams)
    for task_id, task in enumerate(program.tasks):
        start = float(timeline.start_s[task_id, candidate])
        events.append(
            event(
                task.name,
                task.lane.device,
                streams.index(task.lane.stream),
                start,
                float(timeline.end_s[task_id, candidate]) - start,
                task.action._asdict(),
            )
        )
    return events


def event(
    name: str, device: int, thread: int, start_s: float, duration_s: float, args: Mapping[str, object] | None = None
) -> dict[str, object]:
    """A complete ("X") event."""
    return {
        "name": name,
        "cat": name.split()[0],
        "ph": "X",
        "pid": device,
        "tid": thread,
        "ts": start_s * 1e6,
        "dur": duration_s * 1e6,
        "args": dict(args or {}),
    }


def _names(devices: Iterable[int], streams: Iterable[str]) -> list[dict[str, object]]:
    named: list[dict[str, object]] = []
    for device in devices:
        named.append({"name": "process_name", "ph": "M", "pid": device, "args": {"name": f"stage {device}"}})
        for thread, stream in enumerate(streams):
            named.append({"name": "thread_name", "ph": "M", "pid": device, "tid": thread, "args": {"name": stream}})
    return named


def write_trace(path: str | os.PathLike[str], events: list[dict[str, object]]) -> None:
    """Write a trace file."""
    write_atomically(path, json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))
