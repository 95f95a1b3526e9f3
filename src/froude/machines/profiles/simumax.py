"""System files of SimuMax (MooreThreads, 2025, github.com/MooreThreads/SimuMax, ``configs/system/*.json``) as devices.

Efficiencies of operators stand there by shape, under rates in TFLOP/s; bandwidths in GiB/s with an efficiency and a
latency; a collective takes ``size x (scale + offset / ranks)`` over the bandwidth of the network, and its latency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from froude.core.errors import FroudeError
from froude.machines.device import Device, closest_device

GIB = 2.0**30
Rows = list[tuple[float, ...]]

_COLLECTIVES = {
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all2all": "all-to-all",
    "p2p": "send",
}
_STAGES = {"fwd": "forward", "bwd_grad_act": "dgrad", "bwd_grad_w": "wgrad"}
_LAYOUTS = {"TN": "forward", "NN": "dgrad", "NT": "wgrad"}
_DTYPES = {"": "bf16", "fp8_": "fp8"}
_SIZES = [2.0**i for i in range(10, 35, 2)]
"""Bytes at which a line of latency and bandwidth is written down."""


def recognises(data: Any) -> bool:
    """Whether this is a system file."""
    return isinstance(data, dict) and "accelerator" in data and "networks" in data


def read(data: Mapping[str, Any], where: str) -> Device:
    """A device with the file's rates, memory and links, and tables of its efficiencies.

    The catalogue's device of that name adds what the file does not say (power, caches, multiprocessors).

    Raises:
        FroudeError: naming the entry that is missing or is no number.
    """
    try:
        return _device(data)
    except KeyError as missing:
        raise FroudeError(f"{where}: not a SimuMax system file: {missing.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as problem:
        raise FroudeError(f"{where}: not a SimuMax system file ({problem})") from None


def _device(data: Mapping[str, Any]) -> Device:
    accelerator, networks = data["accelerator"], data["networks"]
    ops, per_node = accelerator["op"], int(data["num_per_node"])
    memory = accelerator["bandwidth"]["default"]
    inside, outside = _networks(networks, per_node)
    tables: dict[str, Rows] = {"stream": [(size, _line_s(size, memory)) for size in _SIZES]}
    for prefix, dtype in _DTYPES.items():
        _products(tables, ops.get(f"{prefix}matmul", {}), dtype)
        _grouped(tables, ops.get(f"{prefix}group_matmul", {}), dtype)
    _attention(tables, ops.get("sdp_fwd", {}), "forward", 1.0)
    _attention(tables, ops.get("sdp_bwd", {}), "backward", 2.5)
    for ranks, network in inside.items():
        for kind, size, seconds in _exchanges(network, ranks):
            tables.setdefault(f"{kind}.near", []).append((2.0 if kind == "send" else ranks, 1.0, size, seconds))
    for nodes in (2, 4, 8, 16, 32, 64):  # all devices of a node at once, each in a group of its own
        for kind, size, seconds in _exchanges(outside, nodes, shared=per_node):
            row = (2.0 if kind == "send" else nodes, 1.0, size, seconds)
            tables.setdefault(f"{kind}.far", []).append(row)
    rates = {dtype: ops.get(f"{prefix}matmul", ops["default"]) for prefix, dtype in _DTYPES.items()}
    known = {dtype: op for dtype, op in rates.items() if dtype == "bf16" or "fp8_matmul" in ops}
    base = closest_device(str(data["sys_name"]))
    peak = {dtype: float(op["tflops"]) * 1e12 for dtype, op in known.items()}
    fields = {} if base is None else base.model_dump(exclude={"sustained_flops", "sustained_source"})
    widest = inside[max(inside)]["bandwidth"]
    return Device.parse(
        {
            **fields,
            "name": str(data["sys_name"]).lower().replace("_", "-"),
            "peak_flops": {**fields.get("peak_flops", {}), **peak, "fp16": peak["bf16"]},
            "sustained_flops": {dtype: peak[dtype] * float(op["efficient_factor"]) for dtype, op in known.items()},
            "memory_bytes": float(accelerator["mem_gbs"]) * GIB,
            "memory_bandwidth": float(memory["gbps"]) * GIB,
            "scaleup_bandwidth": float(widest["gbps"]) * GIB,
            "scaleup_domain": per_node,
            "scaleout_bandwidth": float(outside["bandwidth"]["gbps"]) * GIB / per_node,
            "devices_per_node": per_node,
            "source": "a SimuMax system file",
            "sustained_source": "its efficiencies",
            "tables": {name: tuple(rows) for name, rows in tables.items() if rows},
        },
        where="system file",
    )


def _networks(networks: Mapping[str, Any], per_node: int) -> tuple[dict[int, Any], Any]:
    """Links inside a node by the ranks that use them at once, and between nodes."""
    if networks.get("intra_with_pcie"):
        inside = {n: networks[f"intra_node_pcie_{n}x"] for n in (2, 4, 8) if f"intra_node_pcie_{n}x" in networks}
        return inside or {per_node: networks["intra_node_pcie_8x"]}, networks["inter_node"]
    link = networks["high_intra_node"]
    return {n: link for n in (2, 4, 8) if n <= per_node} or {per_node: link}, networks["inter_node"]


def _exchanges(network: Mapping[str, Any], ranks: int, shared: int = 1) -> Iterator[tuple[str, float, float]]:
    """Collective, bytes and seconds; a network port is ``shared`` by so many."""
    link = network["bandwidth"]
    for theirs, ours in _COLLECTIVES.items():
        op = network["op"].get(theirs)
        if op is None:
            continue
        line = {**link, **{key: op[key] for key in ("efficient_factor", "latency_us") if op.get(key) is not None}}
        share = float(op["scale"]) * (1.0 + float(op["offset"]) / ranks)
        for size in _SIZES:
            yield ours, size, _line_s(size * share * shared, line)


def _line_s(size: float, line: Mapping[str, Any]) -> float:
    reached = float(line["gbps"]) * GIB * float(line["efficient_factor"])
    return size / reached + float(line.get("latency_us", 0.0)) * 1e-6


def _shapes(op: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], float]]:
    """Shapes that were measured, and FLOP/s."""
    for shape, factor in op.get("accurate_efficient_factor", {}).items():
        fields = dict(part.strip().split("=", 1) for part in shape.split(","))
        yield fields, float(op["tflops"]) * 1e12 * float(factor)


def _products(tables: dict[str, Rows], op: Mapping[str, Any], dtype: str) -> None:
    for shape, rate in _shapes(op):
        if float(shape.get("b", 1)) == 1.0:
            m, k, n = (float(shape[name]) for name in "mkn")
            direction = _LAYOUTS[shape["layout"]]
            ours = (n, k, m) if direction == "wgrad" else (m, k, n)  # its gradient of weights stands transposed
            tables.setdefault(f"product.{dtype}.{direction}", []).append((*ours, 2.0 * m * k * n / rate))


def _grouped(tables: dict[str, Rows], op: Mapping[str, Any], dtype: str) -> None:
    """M rows each of ``ng`` experts; K and N stay those of the forward product in all stages."""
    for shape, rate in _shapes(op):
        groups, m, k, n = (float(shape[name]) for name in ("ng", "M", "K", "N"))
        direction = _STAGES[shape["stage"]]
        ours = {"forward": (m, k, n), "dgrad": (m, n, k), "wgrad": (k, m, n)}[direction]
        tables.setdefault(f"grouped.{dtype}.{direction}", []).append((*ours, groups, 2.0 * groups * m * k * n / rate))


def _attention(tables: dict[str, Rows], op: Mapping[str, Any], direction: str, products: float) -> None:
    """FLOPs count every pair of a sequence, the kernel skips what causality does; without shapes one rate for all."""
    rows: Rows = []
    for shape, rate in _shapes(op):
        batch, length, heads, kv_heads = (float(shape[x]) for x in ("batch", "seq_len", "head_num", "kv_head_num"))
        width = (float(shape["qk_head_dim"]) + float(shape["v_head_dim"])) / 2.0
        seconds = 4.0 * products * batch * length**2 * heads * width / rate
        rows.append((batch, length, 0.0, heads, kv_heads, width, seconds))
    if not rows and op:
        rate = float(op["tflops"]) * 1e12 * float(op["efficient_factor"])
        for length, heads, width in product((1024.0, 4096.0, 16384.0, 65536.0), (4.0, 16.0, 64.0), (64.0, 128.0)):
            rows.append((1.0, length, 0.0, heads, heads, width, 4.0 * products * length**2 * heads * width / rate))
    if any(not math.isfinite(value) for row in rows for value in row):
        raise ValueError("an efficiency of attention is not finite")
    tables[f"attention.bf16.{direction}"] = rows
