"""Replay requests through the engine as they arrive."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from froude.runtime.engine.calibration import Measured
from froude.runtime.engine.clock import Clock, WallClock
from froude.runtime.engine.engine import Step
from froude.serving.metrics import PS
from froude.serving.policy import Sequence

_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and the token ids of its prompt."""

    sequence: Sequence
    prompt: list[int]


@dataclass(slots=True)
class RequestLog:
    """What happened to one request; seconds since the replay began.

    Attributes:
        arrival_s: when it was due; the engine takes it in between two iterations.
        scheduled_s: start of the first iteration that computed some of it.
        token_s: when each of its tokens was out.
        preemptions: how often it lost its blocks.
    """

    sequence: Sequence
    arrival_s: float
    scheduled_s: float | None = None
    token_s: list[float] = field(default_factory=list)
    preemptions: int = 0
    finished: bool = False


@dataclass(frozen=True, slots=True)
class IterationLog:
    """One iteration; seconds since the replay began."""

    start_s: float
    end_s: float
    decoding: int
    context_tokens: int
    prompts: tuple[tuple[int, int], ...]
    preempted: int
    waiting: int
    used_blocks: int
    processor_s: float  # of this process's main thread: less than the duration when others had the processor
    copied: tuple[int, int] = (0, 0)  # sequences and blocks that moved to host memory or back
    replica: int = 0

    @property
    def duration_s(self) -> float:
        """How long it took, planning included."""
        return self.end_s - self.start_s

    @property
    def measured(self) -> Measured:
        """As raw material of a calibration."""
        return Measured(self.decoding, self.context_tokens, self.prompts, self.duration_s, self.processor_s)


@dataclass(slots=True)
class Log:
    """All requests that arrived, in order of id, and all iterations."""

    started_at: float = 0.0
    requests: dict[int, RequestLog] = field(default_factory=dict)
    iterations: list[IterationLog] = field(default_factory=list)
    interrupted: bool = False

    @property
    def duration_s(self) -> float:
        """Until the last iteration ended, or the last token came from elsewhere."""
        last_s = (request.token_s[-1] for request in self.requests.values() if request.token_s)
        return max((iteration.end_s for iteration in self.iterations), default=max(last_s, default=0.0))

    @property
    def output_tokens(self) -> int:
        """Tokens that came out, those of unfinished requests included."""
        return sum(len(request.token_s) for request in self.requests.values())

    def add(self, step: Step, start_s: float, end_s: float, processor_s: float, replica: int = 0) -> None:
        """Take in what an iteration did."""
        for sequence in step.iteration.preempted:
            self.requests[sequence.id].preemptions += 1
        if step.idle:
            return
        for sequence, _, _ in step.iteration.prompts:
            request = self.requests[sequence.id]
            if request.scheduled_s is None:
                request.scheduled_s = start_s
        for sequence in step.emitted:
            self.requests[sequence.id].token_s.append(end_s)
        for sequence in step.finished:
            self.requests[sequence.id].finished = True
        self.iterations.append(
            IterationLog(
                start_s,
                end_s,
                len(step.iteration.decoding),
                step.context_tokens,
                tuple(step.prompts),
                len(step.iteration.preempted),
                step.waiting,
                step.used_blocks,
                processor_s,
                step.copied,
                replica,
            )
        )


class Server(Protocol):
    """An engine that is stepped: Froude's own or vLLM's."""

    def arrive(self, sequence: Sequence, prompt: list[int]) -> None:
        """A request joins the queue."""

    def step(self, now_ps: int) -> Step:
        """One iteration; an idle one when nothing can run before the next arrival."""


def replay(
    engine: Server,
    arrivals: Items[Arrival],
    clock: type[Clock] = WallClock,
    concurrency: int | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Log:
    """Serve ``arrivals`` (in order of time, then id) when they are due.

    Args:
        engine: an idle engine.
        arrivals: open loop: each arrives at its `Sequence.arrival_ps`.
        clock: the time by which they are due, and by which everything is logged.
        concurrency: closed loop: so many arrive at once, and one more whenever one is complete.
        on_progress: called now and then with the number of complete requests and the time.

    Returns:
        The log. After an interrupt (Ctrl-C) it is marked so and holds what was done until then.
    """
    log = Log(started_at=time.time())
    upcoming, complete, said_s = 0, 0, 0.0
    gc.collect()
    gc.freeze()  # what lives by now is no business of collections during the replay
    ticking = clock()
    now_s = ticking.now_s()
    try:
        while True:
            while upcoming < len(arrivals):
                arrival = arrivals[upcoming]
                if concurrency is None:
                    due_s = arrival.sequence.arrival_ps / PS
                    if due_s > now_s:
                        break
                elif upcoming - complete >= concurrency:
                    break
                else:
                    due_s = now_s
                    arrival.sequence.arrival_ps = int(now_s * PS)
                engine.arrive(arrival.sequence, arrival.prompt)
                log.requests[arrival.sequence.id] = RequestLog(arrival.sequence, due_s)
                upcoming += 1
            processor_s = time.thread_time()
            step = engine.step(int(now_s * PS))
            end_s = ticking.now_s()
            log.add(step, now_s, end_s, time.thread_time() - processor_s)
            complete += len(step.finished)
            if on_progress and end_s - said_s >= _PROGRESS_S:
                on_progress(complete, end_s)
                said_s = end_s
            now_s = end_s  # what is done between iterations is part of the next one
            if step.idle and not step.iteration.preempted:
                if upcoming == len(arrivals):
                    break
                if concurrency is None:
                    ticking.wait(arrivals[upcoming].sequence.arrival_ps / PS)
                now_s = ticking.now_s()
    except KeyboardInterrupt:
        log.interrupted = True
    finally:
        gc.unfreeze()
    return log
