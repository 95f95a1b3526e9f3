"""Prompts and generation on workers of their own, the cache moving over a network in between, with back-pressure.

A prefill worker computes a prompt and emits the first token; the prompt's cache stays in its pool. A decode worker that
has blocks and a place free sets them aside, the cache crosses, the prefill worker's blocks become free and the decode
worker goes on generating. Where decode workers have no room, prompts that are done fill the prefill workers' pools
until these admit no more: generation holds computing back. A decode worker that runs out of cache preempts, and
computes the prompt again itself.

The network: each worker sends, or receives, one request at a time; the whole of it carries so many at once. The cache
is pulled when the prompt is done, or sent layer by layer while the next layers are computed: then, if there was room to
send it to, only what the link did not manage by then is left, at least the last layer.
Source: Zhong et al. (2024), DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model
Serving, arXiv:2401.09670 (decode workers pull, prefill memory is the queue); Patel et al. (2024), Splitwise,
arXiv:2311.18677 (layer by layer); Qin et al. (2024), Mooncake, arXiv:2407.00079.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from heapq import heapreplace
from typing import Any

import numpy as np

from froude.core.errors import InvalidValueError, UnknownNameError
from froude.core.knobs import parse_knobs
from froude.serving.conductor import Conductor, Engine
from froude.serving.policy import Sequence
from froude.serving.router import Router

PS = 1e12
MODES = ("pull", "layer-wise")


@dataclass(frozen=True)
class Transfer:
    """How a cache crosses from one worker to another.

    Attributes:
        latency_ps, token_ps: to start, and per token.
        layers: in which it is sent while the prompt is computed; 0 where it is pulled when the prompt is done.
        concurrency: transfers that the network carries at once; 0 where only the workers' own links limit them.
    """

    latency_ps: int
    token_ps: int
    layers: int = 0
    concurrency: int = 0


def parse_transfer(text: str, link: Transfer, layers: int, bytes_per_token: float) -> Transfer:
    """``pull`` or ``layer-wise``, with ``bandwidth`` in GB/s a device, ``latency`` in seconds and ``concurrency``.

    Raises:
        FroudeError: naming an unknown mode or knob, or a value out of range.
    """
    mode, _, rest = text.partition(":")
    if mode not in MODES:
        raise UnknownNameError("transfer", mode, MODES)
    knobs = parse_knobs("transfer", rest, {"bandwidth": 0.0, "latency": -1.0, "concurrency": 0.0})
    if min(knobs["bandwidth"], knobs["concurrency"]) < 0 or knobs["concurrency"] % 1:
        raise InvalidValueError("transfer", text, "needs a bandwidth above 0 and a whole number of transfers at once")
    if knobs["bandwidth"]:
        link = replace(link, token_ps=round(bytes_per_token / (knobs["bandwidth"] * 1e9) * PS))
    if knobs["latency"] >= 0:
        link = replace(link, latency_ps=round(knobs["latency"] * PS))
    return replace(link, layers=layers if mode == "layer-wise" else 0, concurrency=int(knobs["concurrency"]))


def parse_disaggregation(text: str) -> tuple[int, int]:
    """``2:6``: prefill and decode workers.

    Raises:
        InvalidValueError: when it is not two positive numbers.
    """
    parts = text.split(":")
    try:
        prefill, decode = (int(part) for part in parts)
    except ValueError:
        raise InvalidValueError("disaggregate", text, "is not PREFILL:DECODE, such as 2:6") from None
    if prefill < 1 or decode < 1:
        raise InvalidValueError("disaggregate", text, "needs at least one worker of each kind")
    return prefill, decode


@dataclass(slots=True)
class _Parked:
    """A prompt that is done, and has not crossed yet."""

    sequence: Sequence
    worker: int
    done_ps: int
    waited: bool = False  # for room


class Disaggregation(Conductor):
    """The first workers of the fleet compute prompts, the others generate.

    Args:
        prefill: how many compute prompts.
        transfer: from one to the other.
        routers: of requests to prefill workers, of prompts that are done to decode workers.
    """

    def __init__(self, prefill: int, transfer: Transfer, routers: tuple[Router, Router]) -> None:
        super().__init__()
        self.prefill, self.transfer, self.routers = prefill, transfer, routers
        self.moved_ps: list[int] = []  # from the end of the prompt until the decode worker has the cache
        self.waited_ps: list[int] = []  # the part of it before there was room
        self.arrived_ps: dict[int, int] = {}  # when the decode worker had it, by request
        self._asked: dict[int, tuple[int, int]] = {}  # output and limit of requests whose prompts are not done
        self._lines: list[deque[_Parked]] = []  # by decode worker
        self._free_ps: list[int] = []  # when each worker's link is free
        self._network_ps = [0] * transfer.concurrency
        self._parked_blocks: list[int] = []  # by prefill worker
        self._parked_since: list[int] = []
        self._block_ps = 0  # blocks parked, over time
        self._most_parked = 0.0
        self._pool_blocks = 1

    def begin(self, fleet: Items[Engine]) -> None:
        """Nothing is parked."""
        self._lines = [deque() for _ in fleet[self.prefill :]]
        self._free_ps = [0] * len(fleet)
        self._parked_blocks, self._parked_since = [0] * self.prefill, [0] * self.prefill
        self._pool_blocks = fleet[0].view.total_blocks

    def route(self, sequence: Sequence, fleet: Items[Engine], router: Router) -> int:
        """To a prefill worker, which is asked for one token only."""
        self._asked[sequence.id] = sequence.output_tokens, sequence.limit_tokens
        sequence.output_tokens = sequence.limit_tokens = 1
        return self.routers[0].route(sequence, fleet[: self.prefill])

    def complete(self, sequence: Sequence, replica: int, now_ps: int) -> bool:
        """A decode worker has room again; or a prompt is done, and its cache is to be fetched."""
        if replica >= self.prefill:
            if self._lines[replica - self.prefill]:
                self.at(now_ps, partial(self._offer, replica))
            return True
        sequence.output_tokens, sequence.limit_tokens = self._asked.pop(sequence.id)
        if sequence.output_tokens == 1:
            self.at(now_ps, lambda now, fleet: fleet[replica].order(lambda e, _: self._drop(e, sequence), now))
            return True
        self.at(now_ps, partial(self._assign, _Parked(sequence, replica, now_ps)))
        return False

    def summary(self) -> dict[str, Any]:
        """Times that caches took to cross, and the share of the prefill workers' pools that prompts done filled."""
        return {
            "transfer_s": _summary(self.moved_ps),
            "transfer_wait_s": _summary(self.waited_ps),
            "parked_kv_utilisation": self._most_parked,
            "mean_parked_kv_utilisation": self._block_ps
            / max(1, self.prefill * self._pool_blocks * max(self._parked_since)),
        }

    @staticmethod
    def _drop(engine: Engine, sequence: Sequence) -> None:
        engine.let_go(sequence)

    def _assign(self, parked: _Parked, now_ps: int, fleet: Items[Engine]) -> None:
        """To the decode worker that the router names, where it waits for room."""
        decode = fleet[self.prefill :]
        chosen = self.routers[1].route(parked.sequence, decode)
        decode[chosen].outstanding += 1
        decode[chosen].outstanding_tokens += parked.sequence.prompt_tokens
        self._count(parked.worker, -(-parked.sequence.prompt_tokens // fleet[0].view.block_tokens), now_ps)
        self._lines[chosen].append(parked)
        self._offer(self.prefill + chosen, now_ps, fleet)

    def _offer(self, worker: int, now_ps: int, fleet: Items[Engine]) -> None:
        fleet[worker].order(partial(self._admit, worker), now_ps)

    def _admit(self, worker: int, engine: Engine, now_ps: int) -> None:
        """As many as there is room for, first come, first served."""
        line = self._lines[worker - self.prefill]
        while line and engine.set_aside(line[0].sequence):
            self._send(line.popleft(), worker, now_ps)
        for parked in line:
            parked.waited = True

    def _send(self, parked: _Parked, worker: int, now_ps: int) -> None:
        transfer, sequence = self.transfer, parked.sequence
        took_ps = transfer.token_ps * sequence.prompt_tokens
        start = sequence.begun_ps if transfer.layers and not parked.waited else now_ps
        start = max(start, self._free_ps[parked.worker], self._free_ps[worker])
        if self._network_ps:
            start = max(start, self._network_ps[0])
        end = start + took_ps
        if transfer.layers:
            end = max(end, now_ps + took_ps // transfer.layers)
        end = max(end, now_ps) + transfer.latency_ps
        self._free_ps[parked.worker] = self._free_ps[worker] = end
        if self._network_ps:
            heapreplace(self._network_ps, end)
        self.waited_ps.append(now_ps - parked.done_ps)
        self.moved_ps.append(end - parked.done_ps)
        self.arrived_ps[sequence.id] = end
        self.at(max(end, now_ps + 1), partial(self._arrive, parked, worker))

    def _arrive(self, parked: _Parked, worker: int, now_ps: int, fleet: Items[Engine]) -> None:
        sequence = parked.sequence

        def let_go(engine: Engine, now: int) -> None:
            engine.let_go(sequence)
            self._count(parked.worker, -sequence.prompt_tokens // engine.view.block_tokens, now)

        fleet[parked.worker].order(let_go, now_ps)
        fleet[worker].order(lambda engine, _: engine.adopt(sequence), now_ps)

    def _count(self, worker: int, change: int, now_ps: int) -> None:
        """Blocks that done prompts hold in a prefill worker's pool."""
        self._block_ps += self._parked_blocks[worker] * (now_ps - self._parked_since[worker])
        self._parked_since[worker] = now_ps
        self._parked_blocks[worker] += change
        self._most_parked = max(self._most_parked, self._parked_blocks[worker] / self._pool_blocks)


def _summary(times_ps: list[int]) -> dict[str, float]:
    if not times_ps:
        return {"mean": 0.0, "p50": 0.0, "p99": 0.0}
    times_s = np.array(times_ps) / PS
    p50, p99 = np.percentile(times_s, (50, 99))
    return {"mean": float(times_s.mean()), "p50": float(p50), "p99": float(p99)}
