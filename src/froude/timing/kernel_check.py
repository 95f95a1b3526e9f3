"""The timing room against kernels measured on real devices: errors by device and kind, on shapes no fit has seen."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.timing.kernel_tables import DEVICES, KINDS, Columns, eight, measured, tables_folder
from froude.timing.roofline import Roofline

SHORTEST_S = 50e-6
"""Shorter kernels are mostly started, not run."""


@dataclass(frozen=True)
class KernelErrors:
    """Errors of one kind of kernel on one device, over shapes that no constant was fitted on.

    Attributes:
        device, kind: which.
        n: shapes.
        median, p90: of |predicted / measured - 1|.
        bias: above 0 predicts too long.
    """

    device: str
    kind: str
    n: int
    median: float
    p90: float
    bias: float


@dataclass(frozen=True)
class KernelCheck:
    """What `check_kernels` found."""

    errors: tuple[KernelErrors, ...]

    def json(self) -> dict[str, Any]:
        """What ``froude check kernels --json`` prints."""
        return {
            "shortest_s": SHORTEST_S,
            "kernels": [
                {"device": e.device, "kind": e.kind, "n": e.n, "median_ape": e.median, "p90_ape": e.p90, "bias": e.bias}
                for e in self.errors
            ],
        }


def check_kernels(
    folder: str | os.PathLike[str] | None = None, on_progress: Callable[[str], None] | None = None
) -> KernelCheck:
    """Price every measured kernel of `SHORTEST_S` or more whose shape was left out of the fits, and compare.

    Isolated kernels run at burst clocks, so clocks are not brought down to what long jobs sustain.

    Args:
        folder: of the tables; by default that of the extra ``kernels``.
        on_progress: told the device and kind at hand.

    Raises:
        FroudeError: when there are no tables.
    """
    found = []
    for device, kind, columns, measured_s in shapes(folder):
        if on_progress is not None:
            on_progress(f"{device}, {kind.name}")
        held = left_out(columns)
        if not held.any():
            continue
        some = {name: values[held] for name, values in columns.items()}
        ratio = kind.price(some, burst(device)) / measured_s[held]
        ratio = ratio[np.isfinite(ratio)]  # kernels measured too seldom to be fitted are not told
        if not len(ratio):
            continue
        error = np.abs(ratio - 1.0)
        found.append(
            KernelErrors(
                device,
                kind.name,
                len(ratio),
                float(np.median(error)),
                float(np.quantile(error, 0.9)),
                float(np.exp(np.mean(np.log(ratio))) - 1.0),
            )
        )
    return KernelCheck(tuple(found))


def shapes(folder: str | os.PathLike[str] | None = None) -> Iterator[tuple[str, Any, Columns, Floats]]:
    """Device, kind, shapes and seconds of every table, without the short ones."""
    where = tables_folder(folder)
    for system, device in DEVICES.items():
        for kind in KINDS:
            columns, seconds = measured(where, system, kind)
            long = seconds >= SHORTEST_S
            if long.any():
                yield device, kind, {name: values[long] for name, values in columns.items()}, seconds[long]


def left_out(columns: Columns) -> np.ndarray:
    """Which shapes no constant may be fitted on: those with an odd checksum, about half, whatever the engine."""
    texts = zip(*(values.tolist() for name, values in columns.items() if name != "engine"), strict=True)
    return np.array([zlib.crc32(repr(shape).encode()) % 2 == 1 for shape in texts], dtype=bool)


def burst(device: str) -> Roofline:
    """A node of a device at burst clocks, under the engines' kernels."""
    return Roofline(eight(device)).isolated
