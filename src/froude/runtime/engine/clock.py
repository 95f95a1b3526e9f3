"""The time by which a replay's requests arrive."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

_AWAKE_S = 0.0005


class Clock(ABC):
    """Seconds since it was made."""

    @abstractmethod
    def now_s(self) -> float:
        """The time."""

    @abstractmethod
    def wait(self, until_s: float) -> None:
        """Let time pass, when there is nothing to do until then."""


class WallClock(Clock):
    """Everybody's time."""

    def __init__(self) -> None:
        self._origin_s = time.perf_counter()

    def now_s(self) -> float:
        """The time."""
        return time.perf_counter() - self._origin_s

    def wait(self, until_s: float) -> None:
        """Sleep; the last moment awake, since nobody is woken on time."""
        time.sleep(max(0.0, until_s - self.now_s() - _AWAKE_S))
        while self.now_s() < until_s:
            pass


class ProcessorClock(Clock):
    """Time that the processor spent on this thread, waits being skipped.

    On a machine that others use at the same time it tells how long the work took, not how long it was kept waiting. It
    knows nothing of helper threads: one torch thread only.
    """

    def __init__(self) -> None:
        self._origin_s = time.thread_time()

    def now_s(self) -> float:
        """The time."""
        return time.thread_time() - self._origin_s

    def wait(self, until_s: float) -> None:
        """Be there at once."""
        self._origin_s -= max(0.0, until_s - self.now_s())


CLOCKS: dict[str, type[Clock]] = {"wall": WallClock, "processor": ProcessorClock}
