"""A device as data, and the catalogue of devices, every figure with its source."""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from froude.core.errors import InvalidValueError, UnknownNameError, suggestion
from froude.core.spec import Spec

DTYPES = ("fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")


class Device(Spec):
    """One accelerator, or one process's share of a computer that `froude measure device` measured.

    Attributes:
        name: canonical name ("h100-sxm").
        peak_flops: dense peak FLOP/s by dtype (fp32, tf32, bf16, fp16, fp8, int8, fp4, int4).
        sustained_flops: measured FLOP/s of large matrix products by dtype, where known.
        memory_bytes, memory_bandwidth: device memory and its bytes/s.
        l2_bytes, multiprocessors: last-level cache; streaming multiprocessors (cores).
        tdp_w, idle_w: board power limit; draw when idle.
        scaleup_bandwidth: bytes/s in one direction into the scale-up fabric (NVLink, xGMI, ICI).
        scaleup_domain: devices reachable at that bandwidth.
        torus_axes: of a scale-up fabric that is a torus: its axes, between which that bandwidth is divided.
        scaleout_bandwidth: bytes/s in one direction into the scale-out network.
        host_bandwidth: bytes/s in one direction to host memory.
        devices_per_node: devices of one computer.
        source, sustained_source, confidence, notes: where the figures come from; how far to trust them.
        measured: parameters measured on this very machine, used instead of the catalogue's where present:
            "gemm_flops" (FLOP/s of large fp32 products), "memory_bandwidth" (bytes/s), "launch_s" (seconds to start
            one operator), "collective_latency_s" (seconds per collective step), "collective_bandwidth" (bytes/s of one
            rank), "processor_share" (of the wall clock, while measuring), and points ``kernel.dtype.direction@size``
            or ``collective@size`` of rate curves, which `froude.tank.device` documents and `froude.timing.measured`
            reads.
        tables: kernels measured on devices of this kind, by name and shape (the last figure of a row is seconds), which
            `froude.timing.tables` documents and uses in prices.
    """

    name: str
    vendor: str = ""
    year: int = 0
    peak_flops: dict[str, float]
    sustained_flops: dict[str, float] = {}
    memory_bytes: float = Field(gt=0)
    memory_bandwidth: float = Field(gt=0)
    l2_bytes: float = Field(default=0.0, ge=0)
    multiprocessors: int = Field(default=1, gt=0)
    tdp_w: float = Field(default=0.0, ge=0)
    idle_w: float = Field(default=0.0, ge=0)
    scaleup_bandwidth: float = Field(default=0.0, ge=0)
    scaleup_domain: int = Field(default=1, gt=0)
    torus_axes: int = Field(default=1, gt=0)
    scaleout_bandwidth: float = Field(default=0.0, ge=0)
    host_bandwidth: float = Field(default=0.0, ge=0)
    devices_per_node: int = Field(default=1, gt=0)
    source: str = ""
    sustained_source: str = ""
    confidence: Literal["high", "medium", "low", "measured"] = "medium"
    notes: str = ""
    measured: dict[str, float] = {}
    tables: dict[str, tuple[tuple[float, ...], ...]] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, table in (("peak_flops", self.peak_flops), ("sustained_flops", self.sustained_flops)):
            for dtype, value in table.items():
                if dtype not in DTYPES:
                    raise ValueError(f"{field} has the unknown dtype {dtype!r}; {suggestion(dtype, DTYPES)}")
                if value <= 0:
                    raise ValueError(f"{field} of {dtype} must be positive, not {value:g}")
        if not self.peak_flops:
            raise ValueError("peak_flops is empty")
        if self.idle_w > self.tdp_w:
            raise ValueError(f"idle_w {self.idle_w:g} exceeds tdp_w {self.tdp_w:g}")
        return self

    def peak(self, dtype: str) -> float:
        """Dense peak FLOP/s.

        Raises:
            InvalidValueError: when the device has no such arithmetic; names what it has.
        """
        if dtype not in self.peak_flops:
            raise InvalidValueError("precision", dtype, f"has no arithmetic on {self.name}, which has {self._dtypes()}")
        return self.peak_flops[dtype]

    def _dtypes(self) -> str:
        return ", ".join(self.peak_flops)


def device_names() -> list[str]:
    """Canonical names, in catalogue order."""
    return list(_catalogue())


def list_devices(name: str | None = None) -> list[Device]:
    """Every device of the catalogue, or the one of that name or alias."""
    return [device for device, _ in _catalogue().values()] if name is None else [find_device(name)]


def find_device(name: str) -> Device:
    """The device of that canonical name or alias; case, blanks, underscores and a leading vendor do not matter.

    Raises:
        UnknownNameError: naming the nearest device.
    """
    table = _aliases()
    key = _fold(name)
    if key not in table:
        aliases = (alias.lower() for _, names in _catalogue().values() for alias in names)
        raise UnknownNameError("device", name, [*_catalogue(), *aliases])
    return _catalogue()[table[key]][0]


def closest_device(text: str) -> Device | None:
    """The device that the first words of a text name ("a100_pairwise_nvlink": the A100), the longest name there is."""
    words = re.split(r"[^A-Za-z0-9]+", text)
    for count in range(len(words), 0, -1):
        name = _aliases().get(_fold(" ".join(words[:count]))) if any(words[:count]) else None
        if name is not None:
            return _catalogue()[name][0]
    return None


_VENDORS = ("nvidia", "amd", "intel", "google", "aws", "huawei", "apple", "instinct", "tesla", "geforce")


def _fold(name: str) -> str:
    words = name.lower().replace("_", " ").replace("-", " ").split()
    while len(words) > 1 and words[0] in _VENDORS:
        words = words[1:]
    return "".join(words)


@functools.cache
def _catalogue() -> dict[str, tuple[Device, list[str]]]:
    data: dict[str, Any] = tomllib.loads(resources.files(__package__).joinpath("devices.toml").read_text("utf-8"))
    idle_fraction = data["defaults"]["idle_fraction"]
    found: dict[str, tuple[Device, list[str]]] = {}
    for name, row in data["devices"].items():
        aliases = row.pop("aliases", [])
        row.setdefault("idle_w", round(idle_fraction * row["tdp_w"], 1))
        found[name] = (Device.parse({"name": name, **row}, where=f"devices.toml, {name}"), aliases)
    return found


@functools.cache
def _aliases() -> dict[str, str]:
    table: dict[str, str] = {}
    for name, (_, aliases) in _catalogue().items():
        for alias in (name, *aliases):
            key = _fold(alias)
            if table.setdefault(key, name) != name:
                raise LookupError(f"devices.toml: {alias!r} names both {table[key]} and {name}")
    return table
