"""The `Call` contract: a node of a request graph."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model, perhaps one of many that a session or an agent makes.

    Attributes:
        id: position in the trace; ties in time break on it.
        input_tokens, output_tokens: tokens in and out.
        arrival_s: earliest time it is made, from the start of the trace.
        after: ids of the calls whose outputs it needs; it is made when the last of them is done.
        think_s: time that then passes first (a tool runs, a person reads).
        prefix_ids: hashes of its prompt's blocks, in order, and perhaps of its output's after them; calls with a common
            beginning share cache.
        deadline_s: time from being made by which it should be done.
        priority: smaller is more urgent.
        client: on whose behalf it is made.
    """

    id: int
    input_tokens: int
    output_tokens: int
    arrival_s: float = 0.0
    after: tuple[int, ...] = ()
    think_s: float = 0.0
    prefix_ids: tuple[int, ...] = ()
    deadline_s: float = math.inf
    priority: float = 0.0
    client: int = 0
