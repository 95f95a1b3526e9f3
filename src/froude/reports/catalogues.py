"""Tables of the catalogues: models and devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from froude.machines.costs import find_price
from froude.machines.device import Device
from froude.models.architecture import Architecture
from froude.reports.tables import console, gib, print_table, si, usd


def model_facts(arch: Architecture) -> dict[str, Any]:
    """A model's fields and what follows from them, for JSON."""
    derived = {
        "parameters": arch.parameters,
        "active_parameters": arch.active_parameters,
        "embedding_parameters": arch.embedding_parameters,
        "layer_parameters": arch.layer_parameters,
        "head_parameters": arch.head_parameters,
        "kv_bytes_per_token": arch.kv_bytes_per_token(),
    }
    return {**arch.model_dump(), **derived}


def device_facts(device: Device) -> dict[str, Any]:
    """A device's fields and its price, for JSON."""
    price = find_price(device.name)
    return {**device.model_dump(), "usd_per_device_hour": price.usd_per_device_hour if price else None}


def print_models(models: Sequence[Architecture]) -> None:
    """One line a model."""
    columns = ["model", "family", "parameters", "active", "layers", "hidden", "heads", "kv", "ffn", "vocab", "KV/token"]
    rows = [
        [
            arch.name,
            arch.family,
            si(arch.parameters),
            si(arch.active_parameters),
            str(arch.layers),
            str(arch.hidden),
            str(arch.heads),
            str(arch.kv_heads),
            str(arch.experts.ffn if arch.experts else arch.ffn),
            str(arch.vocab),
            gib(arch.kv_bytes_per_token()),
        ]
        for arch in models
    ]
    print_table(f"{len(rows)} models", columns, rows, left=2)


def print_model(arch: Architecture) -> None:
    """Everything about one model."""
    rows = [
        ["parameters", f"{arch.parameters:,}"],
        ["  active per token", f"{arch.active_parameters:,}"],
        ["  embedding", f"{arch.embedding_parameters:,}"],
        ["  per layer", f"{arch.layer_parameters:,}"],
        ["  LM head", f"{arch.head_parameters:,}" if arch.head_parameters else "tied to the embedding"],
        ["weights in bf16", gib(2.0 * arch.parameters)],
        ["KV cache per token in bf16", gib(arch.kv_bytes_per_token())],
        ["forward FLOPs per token at 4,096", si(arch.flops_per_token(4096), "FLOP")],
        *[[key, str(value)] for key, value in arch.model_dump(exclude={"name", "source", "experts"}).items()],
    ]
    if arch.experts is not None:
        rows += [[f"experts.{key}", str(value)] for key, value in arch.experts.model_dump().items()]
    print_table(arch.name, ["", ""], rows)
    console().print(f"Source: {arch.source}")


def print_devices(devices: Sequence[Device]) -> None:
    """One line a device."""
    columns = ["device", "vendor", "year", "bf16", "fp8", "memory", "bandwidth", "scale-up", "domain", "TDP", "USD/h"]
    rows = [
        [
            device.name,
            device.vendor,
            str(device.year),
            si(device.peak_flops.get("bf16", device.peak_flops.get("fp16", math.nan))),
            si(device.peak_flops.get("fp8", math.nan)),
            gib(device.memory_bytes),
            si(device.memory_bandwidth, "B/s"),
            si(device.scaleup_bandwidth, "B/s") if device.scaleup_bandwidth else "-",
            str(device.scaleup_domain),
            si(device.tdp_w, "W"),
            usd(price.usd_per_device_hour) if price else "-",
        ]
        for device in devices
        for price in [find_price(device.name)]
    ]
    print_table(f"{len(rows)} devices (dense peaks; fp16 where there is no bf16)", columns, rows, left=2)


def print_device(device: Device) -> None:
    """Everything about one device."""
    price = find_price(device.name)
    rows = [[f"peak {dtype}", si(value, "FLOP/s")] for dtype, value in device.peak_flops.items()]
    rows += [[f"sustained {dtype}", si(value, "FLOP/s")] for dtype, value in device.sustained_flops.items()]
    rows += [
        ["memory", gib(device.memory_bytes)],
        ["memory bandwidth", si(device.memory_bandwidth, "B/s")],
        ["last-level cache", si(device.l2_bytes, "B")],
        ["multiprocessors", str(device.multiprocessors)],
        ["power limit, idle", f"{device.tdp_w:.0f} W, {device.idle_w:.0f} W"],
        ["scale-up", f"{si(device.scaleup_bandwidth, 'B/s')} among {device.scaleup_domain}"],
        ["scale-out", si(device.scaleout_bandwidth, "B/s")],
        ["host", si(device.host_bandwidth, "B/s")],
        ["devices per node", str(device.devices_per_node)],
    ]
    if price is not None:
        span = f"{usd(price.low)} to {usd(price.high)}, {len(price.providers)} providers"
        rows.append(["USD per hour, on demand", f"{usd(price.usd_per_device_hour)} ({span})"])
    rows += [[f"measured {key}", si(value)] for key, value in device.measured.items()]
    print_table(f"{device.name} ({device.vendor} {device.year})", ["", ""], rows)
    console().print(f"Source: {device.source} (confidence: {device.confidence})", soft_wrap=True)
    for note in (device.sustained_source, device.notes):
        if note:
            console().print(note, soft_wrap=True)
