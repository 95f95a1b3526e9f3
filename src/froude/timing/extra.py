"""Devices with the tables of the extra ``kernels`` (aiconfigurator-core), so that prices follow what was measured."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from froude.core.errors import InvalidValueError, UnknownNameError
from froude.machines.cluster import Cluster
from froude.machines.device import find_device
from froude.models.operator import Attention
from froude.timing.kernel_tables import DEVICES, KINDS, Columns, Kind, measured, tables_folder
from froude.timing.roofline import Roofline
from froude.timing.tables import Table

CHOICES = ("fitted", "measured")
FOLDERS = {
    **DEVICES,
    "a100_pcie": "a100-pcie-80gb",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "l4": "l4",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
"""Folder of the extra's tables -> device."""
_NAMES = {
    "products, 16 bits": "product.bf16.forward",
    "products, 8 bits": "product.fp8.forward",
    "attention, prefill": "attention.bf16.forward",
    "attention, decoding": "decode.bf16",
    "NCCL in a node": "",
}
_NCCL = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
         "alltoall": "all-to-all"}  # fmt: skip


def with_kernels(cluster: Cluster, kernels: str, started_s: float = 0.0) -> Cluster:
    """The cluster as it is ("fitted"), or with the measured tables of the extra ("measured").

    Args:
        cluster: of a device that the extra has tables of.
        kernels: one of `CHOICES`.
        started_s: what the caller adds to every product for starting it; measured kernels contain that.

    Raises:
        FroudeError: for another choice, without the extra, and for other devices.
    """
    if kernels not in CHOICES:
        raise UnknownNameError("kernels", kernels, CHOICES)
    device = cluster.device
    tables = dict(device.tables)
    if kernels == "measured":
        system = next((folder for folder, name in FOLDERS.items() if name == device.name), None)
        where = tables_folder()
        if system is None or not (where / system).is_dir():
            has = ", ".join(FOLDERS.values())
            raise InvalidValueError("kernels", kernels, f"has no tables of {device.name}; the extra has those of {has}")
        tables |= _tables(str(where), system)
    if not tables:
        return cluster
    if started_s:
        tables |= {name: _unstarted(rows, started_s) for name, rows in tables.items() if name.startswith("product.")}
    return cluster.model_copy(update={"device": device.model_copy(update={"tables": tables})})


def _unstarted(rows: Table, started_s: float) -> Table:
    return tuple((*shape, max(seconds - started_s, 0.5 * seconds)) for *shape, seconds in rows)


def said_of(cluster: Cluster) -> tuple[str, ...]:
    """What to say of a device with tables, for a plan's assumptions."""
    tables = cluster.device.tables
    if not tables:
        return ()
    kinds = {name.partition(".")[0] for name in tables}
    named = [kind for kind in ("product", "grouped", "attention", "decode", "stream") if kind in kinds]
    links = sorted(kinds - set(named))
    words = {"product": "products", "grouped": "grouped products", "decode": "decoding", "stream": "elementwise work"}
    return (
        f"measured tables of the device price {', '.join([*(words.get(kind, kind) for kind in named), *links])} near "
        "measured shapes (a factor of 2, fading to 4 in a dimension); fitted forms price the rest, and clocks of jobs",
    )


@lru_cache(maxsize=8)
def _tables(folder: str, system: str) -> dict[str, Table]:
    isolated = Roofline(Cluster.parse({"device": find_device(FOLDERS[system]), "count": 8})).isolated
    found: dict[str, Table] = {}
    for kind in KINDS:
        if kind.name not in _NAMES:
            continue
        columns, seconds = measured(Path(folder), system, kind, merged=True)
        if not len(seconds):
            continue
        if kind.name == "NCCL in a node":
            for theirs, ours in _NCCL.items():
                here = columns["op_name"] == theirs
                rows = np.stack([columns["num_gpus"], np.ones(len(here)), 2.0 * columns["message_size"], seconds])
                found[f"{ours}.near"] = _rows(rows[:, here])
            continue
        if kind.name == "attention, prefill":  # the engine's launches and writing the cache were measured with it
            beside = kind.price(columns, isolated) - _alone(kind, columns, isolated)
            seconds = np.maximum(seconds - beside, 0.5 * seconds)
            columns = {**columns, "prefix": np.zeros(len(seconds))}
        names = [name for name in _ORDER if name in columns]
        found[_NAMES[kind.name]] = _rows(np.stack([*(columns[name] for name in names), seconds]))
    return found


_ORDER = ("m", "k", "n", "batch_size", "isl", "prefix", "step", "num_heads", "kv_heads", "head_dim")


def _rows(columns: np.ndarray) -> Table:
    return tuple(map(tuple, columns.astype(float).T.tolist()))


def _alone(kind: Kind, columns: Columns, isolated: Roofline) -> np.ndarray:
    """Attention without what an engine does beside it."""
    batch, queries, heads, kv_heads, head_dim = (np.asarray(columns[name], dtype=float) for name in kind.shape)
    op = Attention.causal(batch=batch, queries=queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    return np.asarray(isolated.operator(op).seconds, dtype=float)
