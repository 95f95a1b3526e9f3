"""Kernels and collectives as measured on the very machine: curves of rate against size, interpolated.

A measured device (see `froude.tank.device`) carries points named ``kernel.dtype.direction@size``. Between two sizes the
rate follows a power law; below the smallest the time of one run stays what it was there (starting it is what counts);
above the largest the rate does. What was not measured is priced by the roofline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Array, Floats
from froude.machines.device import Device
from froude.models.operator import Attention, Elementwise, Gather, Matmul, Operator
from froude.timing.cost import Collective

SUFFIXES = ("-backward", "-scatter")


@dataclass(frozen=True)
class Curve:
    """Rates (FLOP/s, elements/s, bytes/s) at a few sizes."""

    sizes: Floats
    rates: Floats

    def rate(self, size: Array) -> Array:
        """The rate at ``size``."""
        inside = np.exp(np.interp(np.log(size), np.log(self.sizes), np.log(self.rates)))
        return np.where(np.less(size, self.sizes[0]), self.rates[0] * np.divide(size, self.sizes[0]), inside)


@dataclass(frozen=True)
class MeasuredKernels:
    """Seconds of operators and collectives from a device's measured curves; None where there is no curve."""

    curves: Mapping[str, Curve]
    ranks: int

    @classmethod
    def of(cls, device: Device) -> MeasuredKernels:
        """The curves of a device; none for a device of the catalogue."""
        points: dict[str, list[tuple[float, float]]] = {}
        for key, rate in device.measured.items():
            name, at, size = key.partition("@")
            if at:
                points.setdefault(name, []).append((float(size), rate))
        curves = {}
        for name, pairs in points.items():
            sizes, rates = np.array(sorted(pairs)).T
            curves[name] = Curve(sizes, rates)
        return cls(curves, device.devices_per_node)

    def operator_s(self, op: Operator) -> Array | None:
        """One run of ``op``."""
        if isinstance(op, Matmul):
            return self._matmul_s(op)
        if isinstance(op, Attention):
            queries = np.maximum(1.0, 2.0 * op.pairs / op.tokens - 1.0)
            return self._time("attention", op.dtype, op.passes > 1.0, queries, op.flops)
        if isinstance(op, Elementwise | Gather):
            name, backward = op.name, op.name.endswith(SUFFIXES)
            for suffix in SUFFIXES:
                name = name.removesuffix(suffix)
            elements = op.rows * op.width
            return self._time(
                name.rpartition("-")[2] if name != "cross-entropy" else name, op.dtype, backward, elements
            )
        return None

    def collective_s(self, collective: Collective) -> Array | None:
        """One run of ``collective``, when its group is as large as the one that was measured."""
        curve = self.curves.get(collective.kind)
        if curve is None or np.any(np.not_equal(collective.group.ranks, self.ranks)):
            return None
        size = np.maximum(collective.bytes, 1.0)
        return size / curve.rate(size)

    def _matmul_s(self, op: Matmul) -> Array | None:
        """By the harmonic mean of the three sizes: the smallest one tells most about what a product reaches."""
        size = 3.0 / (np.divide(1.0, op.m) + np.divide(1.0, op.k) + np.divide(1.0, op.n))
        direction = op.name.rpartition("-")[2]
        curve = self._curve("matmul", op.dtype, direction if direction in ("dgrad", "wgrad") else "forward")
        if curve is None:
            return None
        seconds = op.flops / curve.rate(size)
        if direction == "wgrad" and op.weight:  # the result is added to what earlier micro-batches left
            added = self._time("residual", op.dtype, False, op.m * op.n)
            seconds = seconds + (0.0 if added is None else added)
        return seconds

    def _time(self, kernel: str, dtype: str, backward: bool, size: Array, amount: Array | None = None) -> Array | None:
        curve = self._curve(kernel, dtype, "backward" if backward else "forward")
        return None if curve is None else (size if amount is None else amount) / curve.rate(size)

    def _curve(self, kernel: str, dtype: str, direction: str) -> Curve | None:
        """That of the type if it was measured, else that of fp32."""
        for measured in (dtype, "fp32"):
            curve = self.curves.get(f"{kernel}.{measured}.{direction}")
            if curve is not None:
                return curve
        return None
