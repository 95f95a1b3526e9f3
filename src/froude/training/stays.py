"""How long a chunk's weights and gradients stay whole, where ZeRO shards them: a pass, or while passes go on with it.

With a schedule that stays with a chunk, its weights are gathered before the first of these passes, and its gradients
reduced after the last, while the next chunk's weights are fetched and the previous chunk's gradients are reduced.

On one stage this is layered gradient accumulation: Lamy-Poirier 2021, arXiv:2106.02679 (row 233 of the catalogue).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from froude.training.schedule import Pass


class Turn(NamedTuple):
    """What one pass means to its chunk.

    Attributes:
        gathers, reduces: weights must be gathered before it; gradients are summed up after it.
        takes, gives: chunks whose weights or gradients become, or cease to be, whole with it: (state, chunk), where
            chunks that are being fetched and reduced meanwhile are counted too.
    """

    gathers: bool
    reduces: bool
    takes: tuple[tuple[str, int], ...] = ()
    gives: tuple[tuple[str, int], ...] = ()


EVERY_PASS = Turn(gathers=True, reduces=True)


def turns(order: Sequence[Pass], *, ahead: bool, behind: bool) -> list[Turn]:
    """The turns of a stage's passes where chunks stay whole.

    Args:
        order: the passes.
        ahead: the next chunk's weights are fetched meanwhile.
        behind: the previous chunk's gradients are reduced meanwhile.
    """
    weights = [len(list(group)) for _, group in groupby(order, key=lambda p: p.chunk)]
    chunks = [chunk for chunk, _ in groupby(order, key=lambda p: p.chunk)]
    found = [Turn(gathers=False, reduces=False) for _ in order]

    def hold(first: int, last: int, what: Iterable[tuple[str, int]]) -> None:
        kept = tuple(what)
        found[first] = found[first]._replace(takes=found[first].takes + kept)
        found[last] = found[last]._replace(gives=found[last].gives + kept)

    first = 0
    for number, count in enumerate(weights):
        last = first + count - 1
        found[first] = found[first]._replace(gathers=True)
        hold(first, last, [("weights", chunk) for chunk in chunks[number : number + (2 if ahead else 1)]])
        first = last + 1
    first, before = 0, list[int]()
    for (kind, chunk), group in groupby(order, key=lambda p: (p.kind, p.chunk)):
        last = first + len(list(group)) - 1
        if kind == "backward":
            found[last] = found[last]._replace(reduces=True)
            hold(first, last, [("gradients", c) for c in [chunk, *(before if behind else [])]])
            before = [chunk]
        first = last + 1
    return found
