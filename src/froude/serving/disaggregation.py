"""Prompts and generation on workers of their own, the cache moving over a link in between.

A prompt is computed on a prefill worker, which emits the first token. Its keys and values then cross that worker's
link, one request after the other, and the request joins the queue of a decode worker that has only the next token to
compute. A decode worker that runs out of cache preempts, and computes the prompt again itself.

Prefill workers never wait for decode workers here: what has been computed waits outside their cache for its turn on the
link. So the two pools are simulated one after the other, each by jumping or by stepping, and the result is the same to
the bit.
Source: Zhong et al. (2024), DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model
Serving, arXiv:2401.09670; Patel et al. (2024), Splitwise, arXiv:2311.18677.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from froude.core.errors import InvalidValueError
from froude.serving.outcome import Outcome, Worker, admissible
from froude.serving.policy import Sequence
from froude.serving.router import Replica, Router


@dataclass(frozen=True)
class Transfer:
    """The link of a prefill worker: so long to start, and per token of the prompt."""

    latency_ps: int
    token_ps: int


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


def serve_disaggregated(
    trace: Items[Sequence],
    prefill: list[Worker],
    decode: list[Worker],
    transfer: Transfer,
    routers: tuple[Router, Router],
    play: Callable[..., Outcome],
    prefix_unit_tokens: int | None = None,
) -> Outcome:
    """Serve requests on two pools.

    Args:
        trace: in order of (arrival, id), with ids 0, 1, 2, ...
        prefill, decode: the workers of each pool.
        transfer: from one to the other.
        routers: of prompts to prefill workers, of computed prompts to decode workers.
        play: `froude.serving.simulator.jump_fleet` or `froude.serving.stepping.step_fleet`.
        prefix_unit_tokens: prefill workers keep prefixes; tokens that one hash stands for.
    """
    outcome = Outcome(len(trace))
    able = admissible(list(trace), outcome, [*prefill, *decode])
    noted = _Noting(routers[0])
    prompts = [
        Sequence(i, s.arrival_ps, s.prompt_tokens, 1, priority=s.priority, prefix=s.prefix, client=s.client)
        for i, s in enumerate(able)
    ]
    first = play(prompts, prefill, router=noted, prefix_unit_tokens=prefix_unit_tokens)

    # Over the links: in order of completion, each worker's link one request at a time.
    link_free = [0] * len(prefill)
    moved: list[tuple[int, int]] = []
    for done_ps, i in sorted((first.finish_ps[i], i) for i in range(len(able))):
        sequence = able[i]
        outcome.first_ps[sequence.id] = outcome.finish_ps[sequence.id] = done_ps
        if sequence.output_tokens > 1:
            worker = noted.chosen.get(i, 0)  # a single worker is not asked for
            start = max(done_ps, link_free[worker])
            link_free[worker] = start + transfer.latency_ps + transfer.token_ps * sequence.prompt_tokens
            moved.append((link_free[worker], i))
    moved.sort()
    generating = []
    for place, (arrival_ps, i) in enumerate(moved):
        s = able[i]
        late = Sequence(
            place, arrival_ps, s.prompt_tokens, s.output_tokens, s.limit_tokens, s.priority, client=s.client
        )
        late.computed_tokens, late.generated_tokens = s.prompt_tokens, 1
        generating.append(late)
    second = play(generating, decode, router=routers[1]) if generating else Outcome(0)

    for place, (_, i) in enumerate(moved):
        outcome.finish_ps[able[i].id] = second.finish_ps[place]
        outcome.preemptions[able[i].id] += second.preemptions[place]
    for i, sequence in enumerate(able):
        outcome.preemptions[sequence.id] += first.preemptions[i]
    outcome.iterations = first.iterations + second.iterations
    outcome.hit_tokens, outcome.asked_tokens = first.hit_tokens, first.asked_tokens
    outcome.busy_ps = first.busy_ps + second.busy_ps
    outcome.peak_blocks = max(first.peak_blocks, second.peak_blocks)
    for segment in second.segments:
        segment.replica += len(prefill)
    outcome.segments = sorted([*first.segments, *second.segments], key=lambda s: (s.start_ps, s.replica))
    return outcome


class _Noting(Router):
    """Another router, its answers noted: request -> worker."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.chosen: dict[int, int] = {}

    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """As the router within."""
        self.chosen[sequence.id] = self.router.route(sequence, replicas)
        return self.chosen[sequence.id]
