"""Live migration: running requests move from a replica that is short of cache to one that has room.

Every so often each replica reports its *freeness*: free blocks, less what the head of its queue asks for, over the size
of its batch, which is the iterations it can go on without running short. Of replicas below a threshold and replicas
above another, the least free is paired with the most free, and so on; each pair moves one request. Its cache is copied
while it goes on decoding; then it is taken out, what it computed meanwhile is copied, and it goes on at the other end.
So it pauses for the last step only, however long its context is.
Source: Sun et al. (2024), Llumnix: Dynamic Scheduling for Large Language Model Serving, arXiv:2406.03243, sections 4.2
(migration in stages) and 4.4 (virtual usage, freeness).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from functools import partial
from typing import Any

from froude.core.errors import InvalidValueError
from froude.core.knobs import parse_knobs
from froude.serving.conductor import Conductor, Engine
from froude.serving.disaggregation import Transfer
from froude.serving.policy import Sequence

PS = 1e12
_KNOBS = {"every": 0.5, "from": 10.0, "to": 60.0}


class LiveMigration(Conductor):
    """Attributes:
    link: between replicas.
    interval_s: between looks.
    from_below, to_above: freeness, in iterations, below which a replica sends requests away, above which it takes some.
    migrations: how many requests moved.
    pause_ps: for how long they were with no replica, together.
    """

    def __init__(
        self, link: Transfer, interval_s: float = 0.5, from_below: float = 10.0, to_above: float = 60.0
    ) -> None:
        super().__init__()
        if not interval_s > 0:
            raise InvalidValueError("migrate, interval", interval_s, "is not a time; it must be positive")
        if not from_below < to_above:
            raise InvalidValueError("migrate, from", from_below, f"must be less than to ({to_above:g})")
        self.link, self.interval_s = link, interval_s
        self.from_below, self.to_above = from_below, to_above
        self.migrations = self.pause_ps = 0
        self._freeness: dict[int, float] = {}
        self._moving: set[int] = set()  # replicas that take part in a migration

    @classmethod
    def parse(cls, text: str, link: Transfer) -> LiveMigration:
        """``every=0.5,from=10,to=60``: seconds, and two bounds of freeness in iterations.

        Raises:
            InvalidValueError: naming an unknown knob, or a value out of range.
        """
        knobs = parse_knobs("migrate", text, _KNOBS)
        return cls(link, knobs["every"], knobs["from"], knobs["to"])

    def begin(self, fleet: Items[Engine]) -> None:
        """The first look."""
        self.at(self._interval_ps, self._look)

    def summary(self) -> dict[str, Any]:
        """How many migrations, and the mean pause of a request."""
        return {"migrations": self.migrations, "mean_pause_s": self.pause_ps / PS / max(1, self.migrations)}

    @property
    def _interval_ps(self) -> int:
        return max(1, round(self.interval_s * PS))

    def _look(self, now_ps: int, fleet: Items[Engine]) -> None:
        """Pair by the reports of the last look, and ask for new ones."""
        able = [i for i in self._freeness if i not in self._moving]
        short = sorted((i for i in able if self._freeness[i] < self.from_below), key=lambda i: (self._freeness[i], i))
        roomy = sorted((i for i in able if self._freeness[i] > self.to_above), key=lambda i: (-self._freeness[i], i))
        for source, target in zip(short, roomy, strict=False):
            self._moving |= {source, target}
            fleet[source].order(partial(self._choose, source, target), now_ps)
        for index, engine in enumerate(fleet):
            if engine.outstanding:
                engine.order(partial(self._report, index), now_ps)
            else:
                self._freeness[index] = float("inf")
        self.at(now_ps + self._interval_ps, self._look)

    def _report(self, replica: int, engine: Engine, now_ps: int) -> None:
        view, wanted = engine.view, 0
        if view.waiting:
            head = view.waiting.peek()
            wanted = view.blocks_needed(head, head.remaining_tokens)
        batch = max(1, view.decoding + len(view.prefilling))
        self._freeness[replica] = (view.free_blocks - wanted) * view.block_tokens / batch

    def _choose(self, source: int, target: int, engine: Engine, now_ps: int) -> None:
        """The shortest running request that decodes: it is copied while it goes on."""
        running = [s for s in engine.view.running() if s.generated_tokens and s.remaining_tokens == 1]
        if not running:
            self._moving -= {source, target}
            return
        chosen = min(running, key=lambda s: (s.priority, s.computed_tokens, s.id))
        took_ps = self.link.latency_ps + chosen.computed_tokens * self.link.token_ps
        copied = chosen.computed_tokens
        self.at(now_ps + took_ps, lambda now, fleet: self._stop(chosen, copied, source, target, now, fleet))

    def _stop(
        self, sequence: Sequence, copied: int, source: int, target: int, now_ps: int, fleet: Items[Engine]
    ) -> None:
        def take(engine: Engine, now: int) -> None:
            self._moving -= {source, target}
            running = engine.view.running()
            if sequence not in running or sequence.remaining_tokens != 1:  # done, or preempted
                return
            engine.withdraw(sequence)
            self.carried += 1
            self.migrations += 1
            pause_ps = self.link.latency_ps + (sequence.computed_tokens - copied) * self.link.token_ps
            self.pause_ps += pause_ps
            self.give([sequence], target, now + 1 + pause_ps)

        fleet[source].order(take, now_ps)
