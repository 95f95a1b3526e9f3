"""A waiting line for each client, and what each client has been served: the queue of fair schedulers.

Counters are those of Sheng et al. (2024), Fairness in Serving Large Language Models, arXiv:2401.00588 (algorithm 2):
a client is charged for a prompt when it is admitted and for every token that it gets; one that comes back after it had
nothing to wait for is lifted to the least charged of those who wait, so that idleness earns no credit.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Protocol

from froude.serving.policy import FOREVER, Sequence
from froude.serving.prefix_cache import PrefixCache


class _Engine(Protocol):
    cache: PrefixCache | None
    free_blocks: int
    now_ps: int


class ClientLines:
    """First come, first served within a client; the client that was charged least comes first, ties by its number.

    Attributes:
        generating: decoding sequences by client, where the executor jumps: each charges a token an iteration.
    """

    def __init__(self, engine: _Engine, weights: tuple[int, int]) -> None:
        self.engine = engine
        self.input_weight, self.output_weight = weights
        self.generating: dict[int, int] = {}
        self._charged: defaultdict[int, int] = defaultdict(int)  # a client may come from another replica
        self._lines: dict[int, deque[Sequence]] = {}
        self._joining: list[Sequence] = []
        self._last_client: int | None = None  # whose line was the last to empty

    def __len__(self) -> int:
        return sum(map(len, self._lines.values())) + len(self._joining)

    def __bool__(self) -> bool:
        return bool(self._lines) or bool(self._joining)

    def peek(self) -> Sequence:
        """The next one."""
        sequence = self._lines[self._first()][0]
        if self.engine.cache is not None:
            self.engine.cache.match(sequence, self.engine.now_ps)
        return sequence

    def pop(self) -> Sequence:
        """Take the next one out; its client is charged for the prompt, unless it has paid already."""
        client = self._first()
        line = self._lines[client]
        sequence = line.popleft()
        if not line:
            del self._lines[client]
            self._last_client = client
        if not sequence.generated_tokens:
            self._charged[client] += self.input_weight * sequence.prompt_tokens
        if self.engine.cache is not None:
            self.engine.free_blocks -= self.engine.cache.acquire(sequence, self.engine.now_ps)
        return sequence

    def join(self, sequence: Sequence) -> None:
        """A request arrives; it is in line from the next decision on."""
        self._joining.append(sequence)

    def settle(self) -> None:
        """Those who arrived take their places."""
        for sequence in self._joining:
            client = sequence.client
            if client not in self._lines:
                if self._lines:
                    least = min(self._charged[other] for other in self._lines)
                else:
                    least = self._charged[self._last_client] if self._last_client is not None else 0
                self._charged[client] = max(self._charged.get(client, 0), least)
                self._lines[client] = deque()
            self._lines[client].append(sequence)
        self._joining.clear()

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence returns to the head of its line; a prompt that gave nothing yet is not charged."""
        if not sequence.generated_tokens:
            self._charged[sequence.client] -= self.input_weight * sequence.prompt_tokens
        self._lines.setdefault(sequence.client, deque()).appendleft(sequence)

    def drain(self) -> list[Sequence]:
        """Take all out, client by client; nobody is charged."""
        left = [sequence for client in sorted(self._lines) for sequence in self._lines[client]]
        self._lines.clear()
        return left

    def charge(self, client: int, tokens: int) -> None:
        """A client got that many tokens."""
        self._charged[client] += self.output_weight * tokens

    def charge_generating(self, iterations: int) -> None:
        """So many iterations passed."""
        for client, sequences in self.generating.items():
            self._charged[client] += self.output_weight * sequences * iterations

    def generate(self, client: int, change: int) -> None:
        """Sequences of a client begin or cease to decode."""
        self.generating[client] = self.generating.get(client, 0) + change

    def steady_iterations(self) -> int:
        """Iterations before another client comes first, if nobody is admitted and nobody leaves meanwhile."""
        if len(self._lines) < 2:
            return FOREVER
        first = self._first()
        charged, rate = self._charged[first], self.generating.get(first, 0)
        steady = FOREVER
        for client in self._lines:
            faster = self.output_weight * (rate - self.generating.get(client, 0))
            if client != first and faster > 0:
                whole, rest = divmod(self._charged[client] - charged, faster)
                steady = min(steady, whole if not rest and first > client else whole + 1)
        return steady

    def _first(self) -> int:
        return min(self._lines, key=lambda client: (self._charged[client], client))
