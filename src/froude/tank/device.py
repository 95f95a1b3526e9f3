"""Measure this machine: what one of several processes that work at the same time gets out of it.

All processes run the same kernel at the same time, each with its share of the cores, because that is how training runs
use the machine: they compete for memory, caches and power. Kernels take turns in short windows and the median window
counts, so that a disturbance of a second or two spoils none of them. Kernels are timed by the calling thread's own
clock, which stands still while the system runs something else, so that other programs do not make this machine look
slow; messages, which wait for another process, by the wall clock, between pieces of work.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from froude.core.errors import InvalidValueError
from froude.machines.device import Device
from froude.runtime.launch import Rank, cores_per_rank, launch

if TYPE_CHECKING:
    from froude.tank.kernels import Kernel, Run

PROCESSES = 2
ROUNDS = 3
WINDOW_S = 0.03
PIECE = 384  # a product of this size is the work between two messages: about a millisecond on one core
BUSY = 0.9  # below this share of the wall clock the processes were not alone


@dataclass(frozen=True)
class Window:
    """What one process saw of one kernel in one round; ``share`` is thread clock over wall clock."""

    name: str
    size: int
    rate: float
    share: float


def measure_device(
    *,
    processes: int = PROCESSES,
    name: str | None = None,
    rounds: int = ROUNDS,
    window_s: float = WINDOW_S,
    on_progress: Callable[[float], None] | None = None,
) -> Device:
    """Measure, and describe one process's share of this machine as a device.

    ``measured`` holds "gemm_flops", "memory_bandwidth", "launch_s", "collective_latency_s", "collective_bandwidth",
    "processor_share" (below one when other programs were running) and points ``kernel.dtype.direction@size`` of the
    curves that `froude.timing.measured` reads: rates in FLOP/s for "matmul" (size: all three dimensions) and
    "attention" (size: tokens of a sequence), in elements/s for the others, in bytes/s of the whole tensor for
    collectives (size: bytes).

    Args:
        processes: how many work at the same time.
        name: of the device; the processor's unless given.
        rounds, window_s: how often each kernel is timed, and for how long each time.
        on_progress: called with the fraction that is done.
    """
    if processes < 1:
        raise InvalidValueError("processes", processes, "cannot be measured; the fewest are 1")
    windows: dict[tuple[str, int], list[Window]] = {}

    def hear(rank: int, message: tuple[Window, float]) -> None:
        window, done = message
        windows.setdefault((window.name, window.size), []).append(window)
        if on_progress is not None and rank == 0:
            on_progress(done)

    launch(_measure, processes, rounds, window_s, on_event=hear)
    shares = [w.share for seen in windows.values() for w in seen if w.share > 0]
    rates = {key: statistics.median(w.rate for w in seen) for key, seen in windows.items()}
    return _describe(rates, processes, name, statistics.median(shares))


def _describe(rates: dict[tuple[str, int], float], processes: int, name: str | None, share: float) -> Device:
    from froude.runtime.train.run import machine

    facts = machine()
    best = {
        dtype: max(rate for (kernel, _), rate in rates.items() if kernel == f"matmul.{dtype}.forward")
        for dtype in ("fp32", "bf16")
    }
    measured = {
        "gemm_flops": best["fp32"],
        "gemm_flops.bf16": best["bf16"],
        "memory_bandwidth": rates.pop(("memory-copy", 0)),
        "launch_s": 1.0 / rates.pop(("launch", 0)),
        "processor_share": share,
    }
    links = {size: rate for (kernel, size), rate in rates.items() if kernel == "all-reduce"}
    if links:
        small, large = min(links), max(links)
        measured["collective_latency_s"] = small / links[small] / 2.0  # an all-reduce of two ranks takes two steps
        measured["collective_bandwidth"] = links[large]
    measured |= {f"{kernel}@{size}": rate for (kernel, size), rate in rates.items()}
    return Device(
        name=name or _slug(facts["processor"]),
        peak_flops=best,
        memory_bytes=facts["memory_bytes"] / processes,
        memory_bandwidth=measured["memory_bandwidth"],
        multiprocessors=cores_per_rank(processes),
        scaleup_bandwidth=measured.get("collective_bandwidth", 0.0),
        scaleup_domain=processes,
        devices_per_node=processes,
        source=f"froude measure device, {processes} processes with {cores_per_rank(processes)} threads each",
        confidence="measured",
        measured={key: float(f"{value:.4g}") for key, value in measured.items()},
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "this-machine"


def _measure(rank: Rank, rounds: int, window_s: float) -> None:
    """What each process does: every kernel in turn, ``rounds`` times over, in step with the others."""
    from froude.tank.kernels import Kernel, empty_operator, kernels, memory_copy
    from froude.tank.links import exchanges

    copied = 2**24
    with rank.process_group():
        work: list[Kernel] = [
            Kernel("launch", 0, 1.0, empty_operator),
            Kernel("memory-copy", 0, 8.0 * copied, lambda: memory_copy(copied)),
            *kernels(),
        ]
        if rank.count > 1:
            work += exchanges(rank)
        for turn in range(rounds):
            for index, kernel in enumerate(work):
                window = _window(kernel, rank, window_s)
                rank.report((window, (turn + (index + 1) / len(work)) / rounds))


def _window(kernel: Kernel, rank: Rank, window_s: float) -> Window:
    import torch
    import torch.distributed as dist

    run = kernel.build()
    run()
    begun = time.perf_counter()
    run()
    once = time.perf_counter() - begun
    counts = torch.tensor([max(1.0, window_s / once)])
    dist.all_reduce(counts, op=dist.ReduceOp.MIN)  # messages need as many calls on every rank
    count = int(counts.item())
    dist.barrier()
    if kernel.message:
        return Window(kernel.name, kernel.size, kernel.amount / _between_work_s(run, count), 0.0)
    begun, worked = time.perf_counter(), time.thread_time()
    for _ in range(count):
        run()
    elapsed, worked = time.perf_counter() - begun, time.thread_time() - worked
    return Window(kernel.name, kernel.size, kernel.amount * count / worked, worked / elapsed)


def _between_work_s(run: Run, count: int) -> float:
    """Seconds of one message when its senders compute before it, as ranks do: they come to it a little out of step."""
    import torch

    x = torch.ones(PIECE, PIECE)
    total = 0.0
    for _ in range(count):
        torch.mm(x, x)
        begun = time.perf_counter()
        run()
        total += time.perf_counter() - begun
    return total / count


def busy_warning(device: Device) -> Sequence[str]:
    """A sentence when other programs took part of the machine during the measurement."""
    share = device.measured.get("processor_share", 1.0)
    if share >= BUSY:
        return ()
    return (f"other programs were running: each process got {100.0 * share:.0f}% of its cores, so rates are too low",)
