"""Tables of kernels measured on real devices, as operators and collectives that the timing room prices.

The tables are those of ``aiconfigurator-core`` (NVIDIA, Apache-2.0; the extra ``kernels``): latencies in milliseconds
by device, engine and shape. Its end-to-end samples are not read. An engine's best kernel counts for a shape. Kinds
whose engines have constants of their own are compared engine by engine, each in its newest release; of the others,
whether the median over engines, the best of them or one of them is followed stands with the kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.machines.cluster import Cluster, Group
from froude.models.operator import Attention, Elementwise, LatentAttention, Matmul, Operator
from froude.timing.cost import Collective
from froude.timing.decoding import DecodeKernel
from froude.timing.engine_kernels import find_decoding, find_experts, find_prompt
from froude.timing.roofline import Roofline

DEVICES = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
}
"""Folder of the tables -> device."""

ENGINES = {"vllm": "VLLM", "sglang": "SGLang", "tensorrt-llm": "TRTLLM"}
"""Name of an engine -> that in the tables."""

Columns = dict[str, Any]
Price = Callable[[Columns, Roofline], Floats]


@dataclass(frozen=True)
class Kind:
    """A kind of kernel.

    Attributes:
        name: what is measured.
        files: where it is, below a device's folder.
        shape: columns that tell two measurements apart.
        only: what other columns must hold.
        price: seconds of shapes under a cost model.
        engine: whose kernels are followed where all are one: "median" or "best" of all, or the name of one.
        each: engines are priced one by one, as a column "engine" names them.
        from_python: engines whose kernels were started from Python one by one, and how short a time tells of that.
    """

    name: str
    files: str
    shape: tuple[str, ...]
    only: tuple[tuple[str, tuple[object, ...]], ...]
    price: Price
    engine: str = "median"
    each: bool = False
    from_python: tuple[tuple[str, float], ...] = ()


def tables_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the tables: as given, or that of the installed extra.

    Raises:
        FroudeError: when there is none.
    """
    if folder is not None:
        given = Path(folder)
        for place in (given, given / "systems" / "data", given / "aiconfigurator_core" / "systems" / "data"):
            if any((place / name).is_dir() for name in DEVICES):
                return place
        raise FroudeError(f"{folder}: holds no tables of kernels (folders such as h100_sxm/gemm)")
    found = find_spec("aiconfigurator_core")
    if found is None or found.origin is None:
        raise FroudeError("tables of kernels: the extra is not installed; pip install 'froude[kernels]'")
    return Path(found.origin).parent / "systems" / "data"


def measured(folder: Path, system: str, kind: Kind, *, merged: bool = False) -> tuple[Columns, Floats]:
    """Shapes of a kind as columns, and their seconds; empty where the device has none.

    ``merged`` makes one figure of all engines' even where the kind compares them one by one.
    """
    import polars as pl

    if kind.each and not merged:
        return _by_engine(folder, system, kind)
    frames = []
    for file in sorted((folder / system).glob(kind.files)):
        table = pl.read_parquet(file)
        if "num_key_value_heads" in table.columns:  # 0 stands for as many as there are heads
            own = pl.col("num_key_value_heads")
            table = table.with_columns(pl.when(own > 0).then(own).otherwise(pl.col("num_heads")).alias("kv_heads"))
        for column, allowed in kind.only:
            if column in table.columns:
                table = table.filter(pl.col(column).is_null() | pl.col(column).is_in(list(allowed)))
        if "framework" not in table.columns:
            table = table.with_columns(pl.lit("").alias("framework"))
        frames.append(table.select("framework", *kind.shape, "latency"))
    if not frames:
        return {}, np.empty(0)
    table = pl.concat(frames, how="vertical_relaxed")
    if kind.engine not in ("median", "best"):
        table = table.filter(pl.col("framework") == kind.engine)
    engines = table.group_by("framework", *kind.shape).agg(pl.col("latency").min())
    over = pl.col("latency").min() if kind.engine == "best" else pl.col("latency").median()
    shapes = engines.group_by(*kind.shape).agg(over).sort(*kind.shape)
    columns = {name: shapes[name].to_numpy() for name in kind.shape}
    return columns, shapes["latency"].to_numpy() * 1e-3


def _by_engine(folder: Path, system: str, kind: Kind) -> tuple[Columns, Floats]:
    """Shapes of every engine's newest release, with a column "engine"; where kernels have names, of each kernel's."""
    found = []
    for name, theirs in ENGINES.items():
        files = sorted((folder / system).glob(kind.files), key=_release)
        own = replace(kind, engine=theirs, each=False)
        known: set[str] = set()
        newest: tuple[int, ...] = ()
        for file in reversed(files):
            if newest and _release(file)[:2] != newest:
                break
            columns, seconds = measured(folder, system, replace(own, files=str(file.relative_to(folder / system))))
            kernels = columns.get("kernel_source", np.full(len(seconds), name))
            seen = (seconds >= dict(kind.from_python).get(name, 0.0)) & ~np.isin(kernels, list(known))
            known |= set(kernels)
            if seen.any():
                newest = _release(file)[:2]
                rows = {column: values[seen] for column, values in columns.items()}
                found.append(({**rows, "engine": np.full(int(seen.sum()), name)}, seconds[seen]))
    if not found:
        return {}, np.empty(0)
    names = (*kind.shape, "engine")
    columns = {name: np.concatenate([columns[name] for columns, _ in found]) for name in names}
    return columns, np.concatenate([seconds for _, seconds in found])


def _release(file: Path) -> tuple[int, ...]:
    """The release in a table's path, to compare."""
    return tuple(int(number) for number in re.findall(r"[0-9]+", file.parent.name))


def _numbers(columns: Columns, names: Sequence[str]) -> list[Floats]:
    return [np.asarray(columns[name], dtype=float) for name in names]


def _seconds(model: Roofline, *work: Operator | Collective) -> Floats:
    return np.asarray(model.sequence(work).seconds, dtype=float)


def _each(price: Callable[[Columns, Roofline, str], Floats]) -> Price:
    """Shapes engine by engine, under that engine's stack."""

    def all_of(columns: Columns, model: Roofline) -> Floats:
        if "engine" not in columns:
            return price(columns, model, "")  # merged: no engine's own form
        seconds = np.empty(len(columns["engine"]))
        for name in ENGINES:
            here = columns["engine"] == name
            if here.any():
                stack = model.stack.but(products=name, casts="separate")
                some = {column: values[here] for column, values in columns.items()}
                seconds[here] = price(some, replace(model, stack=stack), name)
        return seconds

    return all_of


def _product(dtype: str, stored: float | None = None) -> Price:
    def price(columns: Columns, model: Roofline, engine: str) -> Floats:
        m, k, n = _numbers(columns, "mkn")
        return _seconds(model, Matmul(name="product", dtype=dtype, m=m, k=k, n=n, weight_bytes=stored))

    return _each(price)


def _prefill(columns: Columns, model: Roofline, engine: str) -> Floats:
    """Attention, writing keys and values to the cache, and the engine's own launches."""
    names = ("batch_size", "isl", "num_heads", "kv_heads", "head_dim")
    batch, queries, heads, kv_heads, head_dim = _numbers(columns, names)
    kernel = find_prompt(engine, model.cluster.device)
    if kernel is not None:
        seconds = kernel.seconds(
            model.cluster.device, batch=batch, queries=queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim
        )
        return np.asarray(seconds, dtype=float)
    attention = Attention.causal(batch=batch, queries=queries, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    cache = Elementwise(name="cache", rows=batch * queries, width=2.0 * kv_heads * head_dim, fusable=False)
    start_s = model.constants.of_generation("attention.engine_start_s", model.cluster.device.name)
    return _seconds(model, attention, cache) + start_s


def _decode(columns: Columns, model: Roofline, engine: str) -> Floats:
    """One query each over a cache; its length is that before the new token (``step``)."""
    batch, step, heads, kv_heads, head_dim = _numbers(
        columns, ("batch_size", "step", "num_heads", "kv_heads", "head_dim")
    )
    kernel = find_decoding(engine, model.cluster.device)
    if kernel is not None:
        seconds = kernel.seconds(
            model.cluster.device, batch=batch, keys=step + 1.0, heads=heads, kv_heads=kv_heads, head_dim=head_dim
        )
        return np.asarray(seconds, dtype=float)
    op = Attention.causal(batch=batch, queries=1.0, prefix=step, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    return _one_query(op, model, batch)


def _one_query(op: Attention, model: Roofline, sequences: Floats) -> Floats:
    kernel = DecodeKernel(model.cluster.device, model.constants)
    return np.asarray(kernel.start_s + kernel.seconds(op, sequences), dtype=float)


MLA = {"own": 192.0, "value": 128.0, "cached": 576.0, "rank": 512.0}
"""Widths of DeepSeek-V2's latent attention (2405.04434): a head's key and value, the cache, and it without rotary."""


def _latent(columns: Columns, *, absorbed: bool) -> LatentAttention:
    batch, heads = _numbers(columns, ("batch_size", "num_heads"))
    queries, prefix = (np.ones_like(batch), columns["step"]) if absorbed else (columns["isl"].astype(float), 0.0)
    width = (MLA["cached"] + MLA["rank"]) / 2 if absorbed else (MLA["own"] + MLA["value"]) / 2
    plain = Attention.causal(batch=batch, queries=queries, prefix=prefix, heads=heads, kv_heads=heads, head_dim=width)
    return LatentAttention(
        name="attention", tokens=plain.tokens, pairs=plain.pairs, context=plain.context, heads=heads, kv_heads=heads,
        head_dim=width, sequences=batch, cached=MLA["cached"], absorbed=absorbed,
    )  # fmt: skip


def _latent_prefill(columns: Columns, model: Roofline) -> Floats:
    start_s = model.constants.of_generation("attention.engine_start_s", model.cluster.device.name)
    return _seconds(model, _latent(columns, absorbed=False)) + start_s


def _latent_decode(columns: Columns, model: Roofline) -> Floats:
    return _one_query(_latent(columns, absorbed=True), model, np.asarray(columns["batch_size"], dtype=float))


UNGATED = {(1024.0, 2688.0), (2048.0, 5120.0), (2688.0, 1856.0), (4096.0, 2688.0), (8192.0, 5120.0)}
"""Hidden and inner sizes of experts without a gate (Nemotron 3), as TensorRT-LLM's tables name them."""


def experts_shape(columns: Columns) -> dict[str, Floats]:
    """A layer's experts on one device, as `ExpertsKernel.layer_s` takes them."""
    names = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    tokens, hidden, inner, top_k, experts, tp, ep = _numbers(columns, names)
    gates = np.array([1.0 if size in UNGATED else 2.0 for size in zip(hidden, inner, strict=True)])
    shape = {"tokens": tokens, "hidden": hidden, "width": inner / tp, "top_k": top_k, "local": experts / ep}
    return {**shape, "ways": ep, "gates": gates}


def _experts(format: str) -> Price:
    """Two grouped products, the activation between them, and sorting; every rank sees all tokens and keeps its own."""

    def price(columns: Columns, model: Roofline) -> Floats:
        device, shape = model.cluster.device, experts_shape(columns)
        seconds = np.full(len(columns["engine"]), np.nan)
        for engine in ENGINES:
            for source in np.unique(columns["kernel_source"]):
                here = (columns["engine"] == engine) & (columns["kernel_source"] == source)
                kernel = find_experts(engine, source, format, device)
                if kernel is not None and here.any():
                    some = {name: values[here] for name, values in shape.items()}
                    seconds[here] = kernel.layer_s(device, **some)
        return seconds

    return price


_COLLECTIVES = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
                "alltoall": "all-to-all"}  # fmt: skip


def _nccl(columns: Columns, model: Roofline) -> Floats:
    elements, ranks = _numbers(columns, ("message_size", "num_gpus"))
    size = 2.0 * elements
    found = np.empty_like(size)
    for theirs, ours in _COLLECTIVES.items():
        here = columns["op_name"] == theirs
        work = Collective(kind=ours, bytes=size[here], group=Group(ranks[here], 1.0), name=ours)  # type: ignore[arg-type]
        found[here] = _seconds(model, work)
    return found


_ATTENTION = (("attn_dtype", ("bfloat16",)), ("kv_cache_dtype", ("bfloat16",)), ("window_size", (0,)))
_LATENT = (("mla_dtype", ("bfloat16",)), ("kv_cache_dtype", ("bfloat16",)))
EXPERTS: tuple[tuple[str, str, tuple[object, ...]], ...] = (
    ("16 bits", "bf16", ("bfloat16",)),
    ("8 bits", "fp8", ("fp8",)),
    ("8 bits in blocks", "fp8-block", ("fp8_block",)),
    ("4 bits", "fp4", ("nvfp4",)),
    ("4 bits unpacked to 16", "4-bit", ("int4_wo", "w4a16_mxfp4")),
    ("4 bits unpacked to 8", "4-bit-8", ("w4a8_mxfp4_mxfp8",)),
)
"""What kinds of experts are called, their format, and its names in the tables."""

_HEADS = ("num_heads", "kv_heads", "head_dim")

KINDS = (
    Kind("products, 16 bits", "gemm/*/*/gemm_perf.parquet", ("m", "k", "n"), (("gemm_dtype", ("bfloat16",)),),
         _product("bf16"), each=True),
    Kind("products, 8 bits", "gemm/*/*/gemm_perf.parquet", ("m", "k", "n"), (("gemm_dtype", ("fp8",)),),
         _product("fp8"), engine="best", each=True),
    Kind("products, 8 bits in blocks", "gemm/*/*/gemm_perf.parquet", ("m", "k", "n"), (("gemm_dtype", ("fp8_block",)),),
         _product("fp8", 1.00025), engine="best", each=True, from_python=(("vllm", 0.4e-3),)),
    Kind("products, 4 bits", "gemm/*/*/gemm_perf.parquet", ("m", "k", "n"), (("gemm_dtype", ("nvfp4",)),),
         _product("fp4", 0.5625), engine="best", each=True),
    Kind("attention, prefill", "attention/*/*/context_attention_perf.parquet", ("batch_size", "isl", *_HEADS),
         (*_ATTENTION, ("step", (0,)), ("head_dim", (64, 128, 256))), _each(_prefill), engine="SGLang", each=True),
    Kind("attention, decoding", "attention/*/*/generation_attention_perf.parquet", ("batch_size", "step", *_HEADS),
         (*_ATTENTION, ("head_dim", (64, 128, 256))), _each(_decode), each=True),
    Kind("latent attention, prefill", "mla/*/*/context_mla_perf.parquet", ("batch_size", "isl", "num_heads"),
         (*_LATENT, ("step", (0,))), _latent_prefill, engine="best"),
    Kind("latent attention, decoding", "mla/*/*/generation_mla_perf.parquet", ("batch_size", "step", "num_heads"),
         _LATENT, _latent_decode),
    *(
        Kind(f"experts, {name}", "moe/*/*/moe_perf.parquet",
             ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size",
              "kernel_source"),
             (("moe_dtype", theirs), ("distribution", ("balanced",))), _experts(ours), each=True)
        for name, ours, theirs in EXPERTS
    ),
    Kind("NCCL in a node", "comm/nccl/*/nccl_perf.parquet", ("op_name", "num_gpus", "message_size"),
         (("nccl_dtype", ("half",)),), _nccl),
)  # fmt: skip


def eight(device: str) -> Cluster:
    """A node of a device."""
    return Cluster.parse({"device": device, "count": 8})
