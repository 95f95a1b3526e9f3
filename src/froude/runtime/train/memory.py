"""How many bytes of tensors a rank really holds: PyTorch's own allocator, listened to for one step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
from torch.profiler import ProfilerActivity, profile


@dataclass
class Peak:
    """What `watch` saw: the most bytes allocated at any moment beyond what was there before."""

    bytes: int = 0


@contextlib.contextmanager
def watch() -> Iterator[Peak]:
    """Record every allocation and release of tensor memory inside the block.

    Temporary buffers inside libraries (oneDNN's packed operands) are not tensors and not counted.
    """
    peak = Peak()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        yield peak
    assert recording.profiler is not None
    moments = [
        (event.start_ns(), event.nbytes())
        for event in recording.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = 0
    for _, change in sorted(moments, key=lambda moment: moment[0]):
        held += change
        peak.bytes = max(peak.bytes, held)


def resident_set_bytes() -> int:
    """Physical memory of this process, interpreter and libraries included."""
    return int(psutil.Process().memory_info().rss)
