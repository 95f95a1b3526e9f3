"""S3-FIFO: a small queue sifts out what is never found again, a main queue gives what is found a second round.

New units enter the small queue, a tenth of all; those found more than once there move to the main queue, the others
leave, and are remembered: one that comes back soon enters the main queue at once.
Source: Yang et al. (2023), FIFO Queues are All You Need for Cache Eviction, doi:10.1145/3600006.3613147.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from froude.core.registry import Source
from froude.serving.eviction import EvictionPolicy

_SMALL = 0.1  # share of the small queue
_MOST = 3  # reads that are counted


class S3Fifo(EvictionPolicy):
    """Three FIFO queues: small, main, and the ghosts of what left the small one."""

    name = "s3-fifo"
    source = Source(
        "Yang et al.", 2023, "FIFO Queues are All You Need for Cache Eviction", "doi:10.1145/3600006.3613147"
    )

    def __init__(self) -> None:
        super().__init__()
        self._reads: dict[int, int] = {}  # of all units in both queues, read at present or not
        self._small: deque[int] = deque()
        self._main: deque[int] = deque()
        self._ghosts: OrderedDict[int, None] = OrderedDict()

    def read(self, units: Iterable[int]) -> None:
        """See `EvictionPolicy`."""
        units = list(units)
        super().read(units)
        for unit in units:
            if unit in self._reads:
                self._reads[unit] = min(_MOST, self._reads[unit] + 1)

    def rest(self, units: Iterable[int]) -> None:
        """See `EvictionPolicy`."""
        for unit in units:
            self.units[unit] = None
            if unit not in self._reads:
                self._reads[unit] = 0
                known = unit in self._ghosts
                self._ghosts.pop(unit, None)
                (self._main if known else self._small).append(unit)

    def forget(self, unit: int) -> None:
        """See `EvictionPolicy`."""
        super().forget(unit)
        del self._reads[unit]
        (self._small if unit in self._small else self._main).remove(unit)

    def evict(self) -> int:
        """See `EvictionPolicy`."""
        small, main = self._small, self._main
        passed = 0  # units of the main queue that stay
        while True:
            if small and (len(small) >= _SMALL * (len(small) + len(main)) or passed > (_MOST + 1) * len(main)):
                unit = small.popleft()
                if unit not in self.units or self._reads[unit] > 1:
                    self._reads[unit] = 0
                    main.append(unit)
                    continue
                self._ghosts[unit] = None
                if len(self._ghosts) > len(small) + len(main):
                    self._ghosts.popitem(last=False)
            else:
                unit = main.popleft()
                if unit not in self.units or self._reads[unit]:
                    self._reads[unit] = max(0, self._reads[unit] - 1)
                    main.append(unit)
                    passed += 1
                    continue
            del self.units[unit], self._reads[unit]
            return unit
