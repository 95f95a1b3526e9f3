"""The engine's loop by jumping from event to event: the same decisions and times as `stepping`, to the bit.

Between events (an arrival that could be admitted, a completion, a prompt's last chunk, a change of branch in the
iteration's cost, blocks running out) the batch evolves predictably, so any number of iterations is one quadratic sum of
integers. Nothing is touched per token: a decoding sequence is only the count of the iteration at which it finishes;
blocks to come follow from a histogram of contexts modulo the block size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

from froude.core.errors import FroudeError
from froude.serving.iteration import IterationTime
from froude.serving.outcome import Outcome, Segment, fits
from froude.serving.policy import Prefill, Scheduler, Sequence, View

_ID_BITS = 24
_ID_MASK = (1 << _ID_BITS) - 1
_NO_TIME = 1 << 100


class FirstComeQueue:
    """Arrivals in order behind preempted sequences: an index into the trace and a stack."""

    __slots__ = ("arrivals", "arrived", "front", "head")

    def __init__(self, arrivals: list[Sequence]) -> None:
        self.arrivals = arrivals
        self.front: list[Sequence] = []
        self.head = 0
        self.arrived = 0

    def __len__(self) -> int:
        return len(self.front) + self.arrived - self.head

    def __bool__(self) -> bool:
        return self.head < self.arrived or bool(self.front)

    def peek(self) -> Sequence:
        """The next one."""
        return self.front[-1] if self.front else self.arrivals[self.head]

    def pop(self) -> Sequence:
        """Take the next one out."""
        if self.front:
            return self.front.pop()
        self.head += 1
        return self.arrivals[self.head - 1]

    def arrive(self, until: int) -> None:
        """Requests up to that index of the trace have arrived."""
        self.arrived = until

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence returns."""
        self.front.append(sequence)


class KeyedQueue:
    """Sequences by the scheduler's key, then id."""

    def __init__(self, arrivals: list[Sequence], scheduler: Scheduler) -> None:
        self.arrivals, self.scheduler = arrivals, scheduler
        self.heap: list[tuple[Any, int, Sequence]] = []
        self.arrived = 0

    def __len__(self) -> int:
        return len(self.heap)

    def __bool__(self) -> bool:
        return bool(self.heap)

    def peek(self) -> Sequence:
        """The next one."""
        return self.heap[0][2]

    def pop(self) -> Sequence:
        """Take the next one out."""
        return heappop(self.heap)[2]

    def arrive(self, until: int) -> None:
        """Requests up to that index of the trace have arrived."""
        for sequence in self.arrivals[self.arrived : until]:
            self.put_back(sequence)
        self.arrived = until

    def put_back(self, sequence: Sequence) -> None:
        """A sequence joins."""
        heappush(self.heap, (self.scheduler.key(sequence), sequence.id, sequence))


class Jumper(View):
    """The state of one engine, advanced one event at a time.

    ``counter`` counts the iterations in which sequences decoded. A decoding sequence is an entry ``finish << 24 | id``
    of a heap, ``finish`` being the counter at which its last token is out; an entry is dead once `finish_at` says
    otherwise. ``growing[r]`` counts the decoding sequences whose context is ``r`` more than the counter, modulo the
    block size; sequences whose blocks were all set aside at admission are not in it.
    """

    def __init__(
        self,
        trace: list[Sequence],
        outcome: Outcome,
        scheduler: Scheduler,
        time: IterationTime,
        total_blocks: int,
        block_tokens: int,
    ) -> None:
        self.trace, self.outcome, self.scheduler, self.time = trace, outcome, scheduler, time
        self.total_blocks = self.free_blocks = total_blocks
        self.block_tokens = block_tokens
        self.arrivals = [s for s in trace if fits(s, scheduler, total_blocks, block_tokens)]
        outcome.rejected = len(trace) - len(self.arrivals)
        keyed = bool(trace) and scheduler.key(trace[0]) is not None
        self.queue = KeyedQueue(self.arrivals, scheduler) if keyed else FirstComeQueue(self.arrivals)
        self.waiting = self.queue
        self.reserves = type(scheduler).reserved_tokens is not Scheduler.reserved_tokens
        self.now_ps = 0
        self.counter = 0
        self.prefilling: list[Sequence] = []
        self.decoding = self.decode_blocks = self.context_tokens = 0
        self.completions: list[int] = []
        self.finish_at = [0] * len(trace)  # by id; 0 unless decoding
        self.growing = [0] * (2 * block_tokens)  # twice end to end, so that any run of residues is one slice
        self.growers = 0
        self.fixed: set[int] = set()  # decoding without growing
        self.admissions: list[Sequence] = []  # in order of admission, dead entries included
        self.place = [-1] * len(trace)  # by id: its live entry in admissions

    # -- what a scheduler sees ---------------------------------------------------------------------------------------

    def blocks_needed(self, sequence: Sequence, tokens: int) -> int:
        """See `View`."""
        held = sequence.computed_tokens + tokens
        if self.reserves:
            held = max(held, self.scheduler.reserved_tokens(sequence))
        blocks = -(-held // self.block_tokens) - sequence.blocks
        return blocks if blocks > 0 else 0

    def newest(self) -> Sequence:
        """See `View`."""
        self._drop_dead_tail()
        sequence = self.admissions[-1]
        self._reveal(sequence)
        return sequence

    def running(self) -> list[Sequence]:
        """See `View`."""
        found = [s for at, s in enumerate(self.admissions) if self.place[s.id] == at]
        for sequence in found:
            self._reveal(sequence)
        return found

    # -- changes of state --------------------------------------------------------------------------------------------

    def _drop_dead_tail(self) -> None:
        admissions, place = self.admissions, self.place
        while admissions and place[admissions[-1].id] != len(admissions) - 1:
            admissions.pop()

    def _reveal(self, sequence: Sequence) -> None:
        """Bring a decoding sequence's own counts up to date."""
        finish = self.finish_at[sequence.id]
        if finish:
            sequence.generated_tokens = sequence.output_tokens - (finish - self.counter)
            sequence.computed_tokens = sequence.prompt_tokens + sequence.generated_tokens - 1
            sequence.blocks = max(sequence.blocks, -(-sequence.computed_tokens // self.block_tokens))

    def _admit(self, sequence: Sequence) -> None:
        self._drop_dead_tail()
        self.place[sequence.id] = len(self.admissions)
        self.admissions.append(sequence)
        self.prefilling.append(sequence)

    def _start_decoding(self, sequence: Sequence) -> None:
        size, computed = self.block_tokens, sequence.computed_tokens
        finish = self.counter + sequence.output_tokens - sequence.generated_tokens
        self.finish_at[sequence.id] = finish
        heappush(self.completions, finish << _ID_BITS | sequence.id)
        self.decoding += 1
        self.context_tokens += computed
        if sequence.blocks * size < computed + size:  # no block set aside
            self._grow(computed, 1)
        elif sequence.blocks * size >= sequence.prompt_tokens + sequence.output_tokens - 1:
            self.fixed.add(sequence.id)
        else:
            raise FroudeError(
                f"scheduler {self.scheduler.name}: reserved_tokens must cover the prompt at most, or all of the output"
            )

    def _stop_decoding(self, sequence: Sequence) -> None:
        """A decoding sequence, its counts revealed, leaves."""
        self.finish_at[sequence.id] = 0
        self.decoding -= 1
        self.context_tokens -= sequence.computed_tokens
        if sequence.id in self.fixed:
            self.fixed.remove(sequence.id)
        else:
            self._grow(sequence.computed_tokens, -1)

    def _grow(self, computed: int, change: int) -> None:
        residue = (computed - self.counter) % self.block_tokens
        self.growing[residue] += change
        self.growing[residue + self.block_tokens] += change
        self.growers += change

    def _release(self, sequence: Sequence) -> None:
        self.free_blocks += sequence.blocks
        sequence.blocks = 0
        self.place[sequence.id] = -1

    def _preempt(self, sequence: Sequence) -> None:
        if self.finish_at[sequence.id]:
            self._reveal(sequence)
            self._stop_decoding(sequence)
        else:
            self.prefilling.remove(sequence)
        self._release(sequence)
        sequence.computed_tokens = 0
        self.queue.put_back(sequence)
        self.outcome.preemptions[sequence.id] += 1

    def _blocks_for(self, iterations: int, prefill: Prefill, decode: bool) -> int:
        """New blocks that so many iterations take."""
        blocks = 0
        if decode:
            rounds, rest = divmod(iterations, self.block_tokens)
            start = (1 - self.counter - rest) % self.block_tokens
            blocks = self.growers * rounds + sum(self.growing[start : start + rest])
        for sequence, tokens in prefill:
            blocks += self.blocks_needed(sequence, tokens * iterations)
        return blocks

    def _affordable(self, iterations: int, prefill: Prefill, decode: bool) -> int:
        """The most iterations, of at most so many, that the free blocks allow; they do not allow all."""
        low, high = 0, iterations
        if decode and self.growers:
            high = min(high, (self.free_blocks // self.growers + 1) * self.block_tokens + 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self._blocks_for(middle, prefill, decode) <= self.free_blocks:
                low = middle
            else:
                high = middle
        return low

    # -- the loop ----------------------------------------------------------------------------------------------------

    def run(self, record: bool = False) -> None:
        """Play the whole trace; ``record`` keeps a `Segment` per jump."""
        arrivals, queue, outcome = self.arrivals, self.queue, self.outcome
        schedule, segment = self.scheduler.schedule, self.time.segment
        size, growing, completions, finish_at = self.block_tokens, self.growing, self.completions, self.finish_at
        trace, place, prefilling = self.trace, self.place, self.prefilling
        first_ps, finish_ps = outcome.first_ps, outcome.finish_ps
        now = arrived = iterations = busy = 0
        least_free = self.free_blocks
        next_arrival = arrivals[0].arrival_ps if arrivals else _NO_TIME
        while True:
            # Ask the scheduler.
            if next_arrival <= now:
                while arrived < len(arrivals) and arrivals[arrived].arrival_ps <= now:
                    arrived += 1
                queue.arrive(arrived)
                next_arrival = arrivals[arrived].arrival_ps if arrived < len(arrivals) else _NO_TIME
            self.now_ps = now
            self.decode_blocks = growing[-self.counter % size]
            decision = schedule(self)
            prefill, decode, left = decision.prefill, decision.decode, decision.iterations
            for sequence in decision.preempt:
                self._preempt(sequence)
                left = 1
            if decode:
                while growing[-self.counter % size] > self.free_blocks:
                    self._preempt(self.scheduler.victim(self))
                    left = 1
            for sequence, _ in prefill:
                if place[sequence.id] < 0:
                    self._admit(sequence)
            decode = decode and self.decoding > 0
            if not decode and not prefill:
                if decision.preempt:
                    continue
                if next_arrival == _NO_TIME:
                    break
                now = next_arrival
                continue
            cut = next_arrival if decision.on_arrival else _NO_TIME
            if decision.until_ps is not None and decision.until_ps < cut:
                cut = decision.until_ps
            asked = True

            # Repeat the decision, jump by jump, until it lapses.
            while True:
                rows = self.decoding if decode else 0
                prompts = [(tokens, s.computed_tokens) for s, tokens in prefill] if prefill else ()
                first, slope, count = segment(rows, self.context_tokens + rows if rows else 0, prompts)
                if left < count:
                    count = left
                if rows:
                    while finish_at[completions[0] & _ID_MASK] != completions[0] >> _ID_BITS:
                        heappop(completions)
                    steps = (completions[0] >> _ID_BITS) - self.counter
                    if steps < count:
                        count = steps
                for sequence, tokens in prefill:
                    steps = sequence.remaining_tokens // tokens
                    if steps < count:
                        count = steps
                if cut != _NO_TIME and count > 1:
                    gap = cut - now
                    if first * (count - 1) + slope * ((count - 1) * (count - 2) // 2) >= gap:
                        count = _iterations_until(gap, first, slope)
                blocks = self._blocks_for(count, prefill, rows > 0)
                if blocks > self.free_blocks:
                    count = self._affordable(count, prefill, rows > 0)
                    if not count:
                        if asked:
                            raise FroudeError(
                                f"scheduler {self.scheduler.name}: gave out {blocks} cache blocks "
                                f"of {self.free_blocks} free"
                            )
                        break
                    blocks = self._blocks_for(count, prefill, rows > 0)
                asked = False

                # Jump.
                took = first * count + slope * (count * (count - 1) // 2)
                if record:
                    prompt_tokens = sum(tokens for _, tokens in prefill)
                    outcome.segments.append(
                        Segment(
                            now,
                            count,
                            first,
                            slope,
                            rows,
                            prompt_tokens,
                            len(queue),
                            self.total_blocks - self.free_blocks,
                        )
                    )
                now += took
                busy += took
                iterations += count
                left -= count
                self.free_blocks -= blocks
                if self.free_blocks < least_free:
                    least_free = self.free_blocks
                if rows:
                    self.counter += count
                    self.context_tokens += rows * count
                lapsed = left == 0 or now >= cut
                for sequence, tokens in prefill:
                    sequence.blocks += self.blocks_needed(sequence, tokens * count)
                    sequence.computed_tokens += tokens * count
                    remaining = sequence.remaining_tokens
                    if remaining < tokens:
                        lapsed = True
                    if remaining == 0:
                        prefilling.remove(sequence)
                        sequence.generated_tokens += 1
                        if sequence.generated_tokens == 1:
                            first_ps[sequence.id] = now
                        if sequence.generated_tokens == sequence.output_tokens:
                            finish_ps[sequence.id] = now
                            self._release(sequence)
                        else:
                            self._start_decoding(sequence)
                if rows:
                    counter = self.counter
                    while completions and completions[0] >> _ID_BITS == counter:
                        sequence = trace[heappop(completions) & _ID_MASK]
                        if finish_at[sequence.id] != counter:
                            continue
                        self._reveal(sequence)
                        self._stop_decoding(sequence)
                        self._release(sequence)
                        finish_ps[sequence.id] = now
                        if decision.on_completion:
                            lapsed = True
                    if not self.decoding and not prefill:
                        break
                if lapsed:
                    break
        outcome.iterations, outcome.busy_ps = iterations, busy
        outcome.peak_blocks = self.total_blocks - least_free
        if queue:
            raise FroudeError(f"scheduler {self.scheduler.name}: left {len(queue)} sequences waiting on an idle engine")


def _iterations_until(gap: int, first: int, slope: int) -> int:
    """The least number of iterations, at least 1, after which ``gap`` picoseconds have passed."""
    if slope == 0:
        return -(-gap // first) if gap > first else 1
    # A float root is only a guess: integers decide.
    half = first - slope / 2
    count = max(1, int((math.sqrt(half * half + 2.0 * slope * gap) - half) / slope))
    while first * count + slope * (count * (count - 1) // 2) < gap:
        count += 1
    while count > 1 and first * (count - 1) + slope * ((count - 1) * (count - 2) // 2) >= gap:
        count -= 1
    return count


def jump(
    sequences: Iterable[Sequence],
    scheduler: Scheduler,
    time: IterationTime,
    total_blocks: int,
    block_tokens: int = 16,
    record: bool = False,
) -> Outcome:
    """Simulate by jumping. ``sequences`` come in order of (arrival, id), with ids 0, 1, 2, ..."""
    trace = list(sequences)
    outcome = Outcome(len(trace))
    Jumper(trace, outcome, scheduler, time, total_blocks, block_tokens).run(record)
    return outcome
