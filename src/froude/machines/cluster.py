"""A cluster as data, and the ways to name one on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from froude.core.arrays import Array
from froude.core.errors import InvalidValueError
from froude.core.spec import Spec
from froude.machines.costs import carbon_intensity, facility_pue, find_price, read_table
from froude.machines.device import Device, find_device
from froude.machines.profiles.files import read_profile


class Cluster(Spec):
    """``count`` devices, how they are wired, and what they cost. What is not given follows from the device.

    Attributes:
        device: the device, or its name.
        count: devices in all.
        devices_per_node: devices of one computer.
        scaleup_domain: devices that reach each other at ``scaleup_bandwidth``.
        scaleup_bandwidth, scaleout_bandwidth: bytes/s in one direction, per device.
        scaleup_latency_s, scaleout_latency_s: seconds of one hop of a collective.
        peer_to_peer: PCIe switches let devices without a fabric of their own reach each other's memory.
        usd_per_device_hour: price on demand; None where no price is known.
        pue: facility power over computer power.
        region, kg_co2e_per_kwh: where it stands; carbon intensity of the electricity, by default that of the region.
        node_overhead_w: power of a node's processors, memory, fans and network cards under load.
        device_mtbf_s: mean time between failures that stop the job, per device.
    """

    device: Device
    count: int = Field(gt=0)
    devices_per_node: int = Field(default=1, gt=0)
    scaleup_domain: int = Field(default=1, gt=0)
    scaleup_bandwidth: float = Field(default=0.0, ge=0)
    scaleout_bandwidth: float = Field(default=0.0, ge=0)
    scaleup_latency_s: float = Field(default=0.0, ge=0)
    scaleout_latency_s: float = Field(default=0.0, ge=0)
    peer_to_peer: bool = False
    usd_per_device_hour: float | None = Field(default=None, ge=0)
    pue: float = Field(default=1.0, ge=1)
    region: str | None = None
    kg_co2e_per_kwh: float = Field(default=0.0, ge=0)
    node_overhead_w: float = Field(default=0.0, ge=0)
    device_mtbf_s: float = Field(default=1.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        """What is not given follows from the device and the documented defaults."""
        if not isinstance(data, dict) or "device" not in data:
            return data
        data = dict(data)
        device = data["device"]
        if isinstance(device, str):
            device = data["device"] = find_device(device)
        elif isinstance(device, dict):
            device = data["device"] = Device.parse(device, where="device")
        if isinstance(device, Device):
            for name in ("devices_per_node", "scaleup_domain", "scaleup_bandwidth", "scaleout_bandwidth"):
                data.setdefault(name, getattr(device, name))
            for name, value in _defaults(device, data.get("region")).items():
                data.setdefault(name, value)
        return data

    @property
    def nodes(self) -> int:
        """Computers, the last one perhaps not full."""
        return -(-self.count // self.devices_per_node)

    def resized(self, count: int) -> Self:
        """The same cluster with another number of devices."""
        return self.parse({**self.model_dump(), "device": self.device, "count": count})


@dataclass(frozen=True, slots=True)
class Group:
    """A communication group: ``ranks`` ranks, neighbours ``stride`` apart (mesh axes laid out innermost first).

    Both may be arrays over candidates.
    """

    ranks: Array
    stride: Array = 1

    def inside(self, domain: int) -> Array:
        """Ranks of the group that lie in one domain of ``domain`` consecutive devices; at least one."""
        return np.minimum(self.ranks, np.maximum(1, np.floor_divide(domain, self.stride)))

    def domains(self, domain: int) -> Array:
        """Domains the group spans."""
        return np.ceil(self.ranks / self.inside(domain))


def parse_cluster(text: str) -> Cluster:
    """One cluster, from any form `parse_clusters` takes but a range."""
    found = parse_clusters(text)
    if len(found) > 1:
        raise InvalidValueError("cluster", text, f"is a range, and one size is needed here, such as {found[0].count}")
    return found[0]


def parse_clusters(text: str) -> list[Cluster]:
    """Clusters from text.

    ``h100-sxm:1024`` (device and count), ``h100-sxm:256..4096`` (doubling), ``profile:FILES:2`` (a device measured
    on this machine or described by another tool, see `froude.machines.profiles`) or the path of a YAML file of
    `Cluster` fields.

    Raises:
        FroudeError: one sentence for malformed text, unknown devices and counts below one.
    """
    if text.startswith("profile:"):
        path, _, counts = text.removeprefix("profile:").rpartition(":")
        if not path:
            raise InvalidValueError("cluster", text, "must be profile:FILE:COUNT, such as profile:box.yaml:2")
        device = read_profile(path)
        return [Cluster.parse({"device": device, "count": count}) for count in _counts(text, counts)]
    if text.endswith((".yaml", ".yml", ".json")):
        return [Cluster.read(text)]
    name, colon, counts = text.rpartition(":")
    if not colon or not name:
        raise InvalidValueError("cluster", text, "is neither DEVICE:COUNT, such as h100-sxm:1024, nor a YAML file")
    device = find_device(name)
    return [Cluster.parse({"device": device, "count": count}) for count in _counts(text, counts)]


def _counts(text: str, counts: str) -> list[int]:
    low, dots, high = counts.partition("..")
    try:
        first = int(low)
        last = int(high) if dots else first
    except ValueError:
        raise InvalidValueError(
            "cluster", text, f"has {counts!r} where a count or a range such as 256..4096 belongs"
        ) from None
    if first < 1:
        raise InvalidValueError("cluster", text, f"has {first} devices; at least 1 is needed")
    if last < first:
        raise InvalidValueError("cluster", text, f"is a range that ends ({last}) before it starts ({first})")
    sizes = [first]
    while sizes[-1] * 2 <= last:
        sizes.append(sizes[-1] * 2)
    return sizes


def _defaults(device: Device, region: str | None) -> dict[str, Any]:
    """What `defaults.toml`, `prices.toml` and `carbon.toml` say of a cluster of this device."""
    assumed = read_table("defaults.toml")
    price = find_price(device.name)
    return {
        "scaleup_latency_s": device.measured.get("collective_latency_s", assumed["latency"]["scaleup_s"]),
        "scaleout_latency_s": assumed["latency"]["scaleout_s"],
        "usd_per_device_hour": None if price is None else price.usd_per_device_hour,
        "pue": facility_pue(assumed["site"]["operator"]),
        "kg_co2e_per_kwh": carbon_intensity(region or assumed["site"]["region"]),
        "node_overhead_w": assumed["power"]["node_overhead_fraction"] * device.tdp_w * device.devices_per_node,
        "device_mtbf_s": assumed["failures"]["device_mtbf_s"],
    }
