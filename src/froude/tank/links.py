"""What ranks on this machine tell each other, ready to be timed: gloo over the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from froude.runtime.launch import Rank
from froude.tank.kernels import Kernel

SIZES = (2**10, 2**14, 2**18, 2**20, 2**22, 2**24)  # bytes of the whole tensor


def exchanges(rank: Rank) -> list[Kernel]:
    """Each collective at each size; every rank must time them in this order."""
    kinds: dict[str, Callable[[int], Callable[[], Any]]] = {
        "all-reduce": _all_reduce,
        "all-gather": lambda size: _all_gather(size, rank.count),
        "reduce-scatter": lambda size: _reduce_scatter(size, rank.count),
        "broadcast": _broadcast,
        "send": lambda size: _send(size, rank),
    }
    return [
        Kernel(kind, size, size * (2 if kind == "send" else 1), partial(make, size), message=True)
        for kind, make in kinds.items()
        for size in SIZES
    ]


def _all_reduce(size: int) -> Callable[[], Any]:
    x = torch.zeros(size // 4)
    return lambda: dist.all_reduce(x)


def _broadcast(size: int) -> Callable[[], Any]:
    x = torch.zeros(size // 4)
    return lambda: dist.broadcast(x, 0)


def _all_gather(size: int, ranks: int) -> Callable[[], Any]:
    piece = torch.zeros(size // 4 // ranks)
    whole = torch.zeros(len(piece) * ranks)
    return lambda: dist.all_gather_single(whole, piece)


def _reduce_scatter(size: int, ranks: int) -> Callable[[], Any]:
    piece = torch.zeros(size // 4 // ranks)
    whole = torch.zeros(len(piece) * ranks)
    return lambda: dist.reduce_scatter_single(piece, whole)


def _send(size: int, rank: Rank) -> Callable[[], Any]:
    """There and back again between neighbours: two hand-overs."""
    x = torch.zeros(size // 4)
    peer = rank.index ^ 1
    if peer >= rank.count:
        return lambda: None

    def run() -> None:
        if rank.index % 2 == 0:
            dist.send(x, peer)
            dist.recv(x, peer)
        else:
            dist.recv(x, peer)
            dist.send(x, peer)

    return run
