"""Profiles of Vidur (Agrawal et al., 2024, "Vidur: A Large-Scale Simulation Framework for LLM Inference",
arXiv:2405.05465; ``data/profiling`` of github.com/microsoft/vidur) as devices: kernels of a layer and collectives.

Times are in milliseconds, by tokens (``mlp.csv``), by batch, chunk and cache (``attention.csv``), by bytes and ranks
(``all_reduce.csv``, ``send_recv.csv``). Of each the median is taken.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from froude.core.errors import FroudeError
from froude.machines.device import Device, closest_device

Cells = dict[str, str]
Entry = tuple[str, tuple[float, ...]]

_HALF = 2.0  # bytes: everything was measured in 16 bits
_COLLECTIVES = {"all_reduce": "all-reduce", "all_gather": "all-gather", "send_recv": "send"}


def read(paths: Sequence[Path]) -> Device:
    """The catalogue's device that the folders name, with tables of these files.

    Raises:
        FroudeError: for files of other forms, and of no device or of several.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.csv")) if path.is_dir() else [path])]
    if not files:
        raise FroudeError(f"{paths[0]}: holds no CSV file")
    found: dict[str, Device] = {}
    tables: dict[str, dict[tuple[float, ...], float]] = {}
    for file in files:
        device = _device_of(file)
        found[device.name] = device
        for name, row in _entries(file):
            tables.setdefault(name, {})[row[:-1]] = row[-1]
    if len(found) > 1:
        raise FroudeError(f"{paths[0]}: profiles of several devices: {', '.join(sorted(found))}")
    (device,) = found.values()
    rows = {name: tuple((*shape, seconds) for shape, seconds in table.items()) for name, table in tables.items()}
    return device.model_copy(update={"tables": rows, "source": f"{device.source}; kernels from profiles of Vidur"})


def _device_of(file: Path) -> Device:
    for part in reversed(file.resolve().parts[:-1]):
        device = closest_device(part)
        if device is not None:
            return device
    raise FroudeError(f"{file}: no folder names its device; keep Vidur's, such as compute/a100/MODEL/mlp.csv")


def _entries(file: Path) -> Iterator[Entry]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FroudeError(f"{file}: cannot be read as CSV ({type(error).__name__})") from None
    reader = next((read for column, read in _READERS.items() if rows and column in rows[0]), None)
    if reader is None:
        columns = " or ".join(_READERS)
        raise FroudeError(f"{file}: not a profile of Vidur: no row, or no column {columns}")
    for number, row in enumerate(rows, start=2):
        try:
            entries = list(reader(row))
        except KeyError as missing:
            raise FroudeError(f"{file}: not a profile of Vidur: column {missing.args[0]!r} is missing") from None
        except (TypeError, ValueError, ZeroDivisionError):
            raise FroudeError(f"{file}: line {number} has a cell that is no number") from None
        yield from (entry for entry in entries if entry[1][-1] > 0.0)


def _number(row: Cells, name: str) -> float:
    value = float(row[name])
    if not math.isfinite(value):
        raise ValueError
    return value


def _seconds(row: Cells, kernel: str) -> float:
    return _number(row, f"time_stats.{kernel}.median") * 1e-3


def _layer(row: Cells) -> Iterator[Entry]:
    """The four products of a layer, and two kernels that stream through memory."""
    names = ("num_tokens", "num_tensor_parallel_workers", "n_embd", "n_expanded_embd", "n_head", "n_kv_head")
    tokens, ways, hidden, inner, heads, kv_heads = (_number(row, name) for name in names)
    gated = row["use_gated_mlp"] == "True"
    own = inner / ways
    qkv = (heads / ways + 2.0 * max(1.0, kv_heads / ways)) * hidden / heads
    shapes = {
        "attn_pre_proj": (hidden, qkv),
        "attn_post_proj": (hidden / ways, hidden),
        "mlp_up_proj": (hidden, 2.0 * own if gated else own),
        "mlp_down_proj": (own, hidden),
    }
    for kernel, (k, n) in shapes.items():
        yield "product.bf16.forward", (tokens, k, n, _seconds(row, kernel))
    yield "stream", (tokens * own * (3.0 if gated else 2.0) * _HALF, _seconds(row, "mlp_act"))
    if row.get("time_stats.add.median"):
        yield "stream", (tokens * hidden * 3.0 * _HALF, _seconds(row, "add"))


def _attention(row: Cells) -> Iterator[Entry]:
    names = ("batch_size", "prefill_chunk_size", "kv_cache_size", "n_q_head", "n_kv_head", "n_embd")
    batch, chunk, cached, heads, kv_heads, hidden = (_number(row, name) for name in names)
    ways = _number(row, "num_tensor_parallel_workers")
    shape = (heads / ways, max(1.0, kv_heads / ways), hidden / heads)
    if row["is_prefill"] == "True":
        yield "attention.bf16.forward", (batch, chunk, cached, *shape, _seconds(row, "attn_prefill"))
    elif cached > 0:
        yield "decode.bf16", (batch, cached, *shape, _seconds(row, "attn_decode"))


def _network(row: Cells) -> Iterator[Entry]:
    kind = _COLLECTIVES.get(row["collective"])
    if kind is None:
        return
    ranks, near, size = (_number(row, name) for name in ("num_workers", "devices_per_node", "size"))
    level = "near" if ranks <= near else "far"
    yield f"{kind}.{level}", (ranks, near if level == "far" else 1.0, size, _seconds(row, row["collective"]))


_READERS: dict[str, Callable[[Cells], Iterator[Entry]]] = {
    "num_tokens": _layer,
    "prefill_chunk_size": _attention,
    "collective": _network,
}
"""Column that tells a file's form -> its reader."""
