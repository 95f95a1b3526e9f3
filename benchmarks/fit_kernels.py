"""Constants of serving engines' kernels, fitted on measured kernels; prints ``timing/engine_kernels.toml``.

    pip install aiconfigurator-core
    python benchmarks/fit_kernels.py products > engine_kernels.toml
    python benchmarks/fit_kernels.py prompts >> engine_kernels.toml  # and decoding
    python benchmarks/fit_kernels.py experts >> engine_kernels.toml

Least squares of the logarithm (robust), on shapes that ``froude check kernels`` does not show. Kernels of 10 to 50
microseconds count a quarter. Products in 16 bits are the same library under every engine and share what describes
tiles; those of narrow formats are each engine's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from froude.core.arrays import Floats
from froude.machines.device import find_device
from froude.timing.constants import default_constants
from froude.timing.engine_kernels import TILES, DecodingKernel, ExpertsKernel, ProductKernel, PromptKernel
from froude.timing.kernel_check import left_out
from froude.timing.kernel_tables import (
    DEVICES,
    ENGINES,
    EXPERTS,
    KINDS,
    Columns,
    Kind,
    experts_shape,
    measured,
    tables_folder,
)

BY_ROWS = {("fp8", "vllm"), ("fp8", "sglang"), ("fp8-block", "tensorrt-llm")}
"""Products whose engine picks tiles by the number of rows alone."""

SAMPLE = 700
FEWEST = 100  # shapes of a kernel for experts
SHORT_S, LONG_S = 10e-6, 50e-6
SCALE = 0.05  # of the robust loss

Rows = dict[str, tuple[list[Floats], Floats, Floats]]  # device -> columns, seconds, weights


@dataclass
class Free:
    """A constant to fit: where it starts, and its bounds."""

    start: float
    low: float
    high: float


def kind_named(name: str) -> Kind:
    """A kind of kernel."""
    return next(kind for kind in KINDS if kind.name == name)


def tables_of(kind: Kind, generation: str) -> Iterator[tuple[str, Columns, Floats]]:
    """Device, columns and seconds of what was measured on a generation."""
    for system, device in DEVICES.items():
        if default_constants().generation(device) != generation:
            continue
        columns, seconds = measured(tables_folder(), system, kind)
        if len(seconds):
            yield device, columns, seconds


def rows_of(kind_name: str, engine: str, generation: str) -> Rows:
    """Shapes to fit on, of the devices of a generation."""
    kind = kind_named(kind_name)
    found: Rows = {}
    for device, columns, seconds in tables_of(kind, generation):
        fit = ~left_out(columns) & (columns["engine"] == engine) & (seconds >= SHORT_S)
        random = np.random.default_rng(0)
        long, short = (random.permutation(np.flatnonzero(fit & part)) for part in (seconds >= LONG_S, seconds < LONG_S))
        chosen = np.concatenate([long[:SAMPLE], short[: SAMPLE // 2]])
        if not len(long):
            continue
        values = [np.asarray(columns[name], dtype=float)[chosen] for name in kind.shape]
        found[device] = (values, seconds[chosen], np.where(seconds[chosen] >= LONG_S, 1.0, 0.25))
    return found


def solve(free: dict[str, Free], residuals: Callable[[dict[str, float]], Floats]) -> dict[str, float]:
    """Robust least squares over named constants."""
    names = list(free)
    start, low, high = (np.array([getattr(f, part) for f in free.values()]) for part in ("start", "low", "high"))

    def of(vector: Sequence[float]) -> Floats:
        return residuals(dict(zip(names, vector, strict=True)))

    scale = np.maximum(np.abs(start), 0.05 * (high - low))
    found = least_squares(
        of, start, bounds=(low, high), loss="soft_l1", f_scale=SCALE, x_scale=scale, diff_step=1e-3, max_nfev=60
    )
    print(f"# cost {found.cost:.2f}", file=sys.stderr)
    return dict(zip(names, map(float, found.x), strict=True))


SHAPE = {
    "ramp_k": Free(200.0, 0.0, 2000.0),
    "rounding": Free(0.5, 0.0, 1.0),
    "smoothness": Free(3.0, 1.3, 12.0),
    "strip": Free(4.0, 1.0, 100.0),
    "partial": Free(0.05, 0.0, 0.5),
} | {f"speed.{i}": Free(value, 0.15, 1.1) for i, value in enumerate((0.95, 0.85, 0.8, 0.8, 0.6), 1)}
OWN = {"memory": Free(0.82, 0.4, 1.0), "start_us": Free(4.0, 2.2, 25.0)}
CAST = {
    "cast_ns": Free(0.2, 0.0, 1.5),
    "cast_least": Free(500.0, 0.0, 3000.0),
    "cast_start_us": Free(3.0, 0.0, 40.0),
}


def kernel(
    values: dict[str, float], engine: str, format: str, generation: str, split: int, by_rows: bool
) -> ProductKernel:
    """The kernel that a vector of constants describes."""

    def get(name: str, default: float = 0.0) -> float:
        return values.get(f"{engine}.{name}", values.get(name, default))

    prefix = f"{engine}.of_peak."
    return ProductKernel.model_construct(
        engine=engine, format=format, generation=generation,
        of_peak={name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)},
        memory=get("memory"), start_s=get("start_us") * 1e-6, ramp_k=get("ramp_k"), rounding=get("rounding"),
        smoothness=get("smoothness"), speeds=(1.0, *(get(f"speed.{i}") for i in range(1, len(TILES)))), split=split,
        strip=get("strip"), partial=get("partial"), cast_s=get("cast_ns") * 1e-9, cast_least=get("cast_least"),
        cast_start_s=get("cast_start_us") * 1e-6, by_rows=by_rows,
    )  # fmt: skip


def products(kind: str, format: str, generation: str, engines: Sequence[str], split: int) -> Iterator[ProductKernel]:
    """Fit one format of products on one generation; the engines share what describes tiles."""
    by_rows = (format, engines[0]) in BY_ROWS
    rows = {engine: rows_of(kind, engine, generation) for engine in engines}
    rows = {engine: by_device for engine, by_device in rows.items() if by_device}
    if not rows:
        return
    free = dict(SHAPE)
    for engine, by_device in rows.items():
        free |= {f"{engine}.{name}": value for name, value in OWN.items()}
        free |= {f"{engine}.of_peak.{device}": Free(0.75, 0.3, 1.0) for device in by_device}
        if format != "bf16":
            free |= {f"{engine}.{name}": value for name, value in CAST.items()}
            free[f"{engine}.start_us"] = Free(3.0, 2.2, 5.0)  # what products in 16 bits take
            if kind.endswith("blocks"):
                free[f"{engine}.cast_start_us"] = Free(3.0, 0.0, 10.0)  # vLLM's were started from Python

    def residuals(values: dict[str, float]) -> Floats:
        parts = []
        for engine, by_device in rows.items():
            own = kernel(values, engine, format, generation, split, by_rows)
            for device, (columns, seconds, weights) in by_device.items():
                predicted = own.parts(find_device(device), *columns).seconds
                parts.append(weights * np.log(predicted / seconds))
        return np.concatenate(parts)

    values = solve(free, residuals)
    for engine in rows:
        yield kernel(values, engine, format, generation, split, by_rows)


EXPERTS_FREE = {
    "memory": Free(0.85, 0.3, 1.0),
    "start_us": Free(30.0, 2.2, 100.0),
    "expert_ns": Free(10.0, 0.0, 500.0),
    "ramp_k": Free(200.0, 0.0, 3000.0),
    "rounding": Free(0.5, 0.0, 1.0),
    "smoothness": Free(3.0, 1.1, 12.0),
    "seen": Free(6.0, 0.0, 60.0),
    "moved": Free(6.0, 0.0, 60.0),
    "inner": Free(6.0, 0.0, 60.0),
} | {f"speed.{i}": Free(value, 0.01, 1.5) for i, value in enumerate((0.1, 0.2, 0.4, 0.7))}


def experts(kind_name: str, format: str, generation: str, engine: str) -> Iterator[ExpertsKernel]:
    """Fit the kernels of one engine for experts in one format on one generation."""
    rows: dict[str, dict[str, tuple[dict[str, Floats], Floats]]] = {}
    for device, columns, seconds in tables_of(kind_named(kind_name), generation):
        fit = ~left_out(columns) & (columns["engine"] == engine) & (seconds >= LONG_S)
        for source in np.unique(columns["kernel_source"][fit]):
            own = np.random.default_rng(0).permutation(np.flatnonzero(fit & (columns["kernel_source"] == source)))
            chosen = own[:SAMPLE]
            if len(chosen) >= FEWEST:
                shape = experts_shape({name: values[chosen] for name, values in columns.items()})
                rows.setdefault(str(source), {})[device] = (shape, seconds[chosen])
    for source, by_device in rows.items():
        free = EXPERTS_FREE | {f"of_peak.{device}": Free(0.6, 0.1, 1.2) for device in by_device}

        def of(values: dict[str, float], source: str = source) -> ExpertsKernel:
            return ExpertsKernel.model_construct(
                engine=engine, kernel=source, format=format, generation=generation,
                of_peak={n.removeprefix("of_peak."): v for n, v in values.items() if n.startswith("of_peak.")},
                memory=values["memory"], start_s=values["start_us"] * 1e-6, expert_s=values["expert_ns"] * 1e-9,
                ramp_k=values["ramp_k"], rounding=values["rounding"], smoothness=values["smoothness"],
                speeds=(*(values[f"speed.{i}"] for i in range(4)), 1.0), seen=values["seen"], moved=values["moved"],
                inner=values["inner"],
            )  # fmt: skip

        def residuals(values: dict[str, float], data: Any = by_device, make: Any = of) -> Floats:
            own = make(values)
            return np.concatenate(
                [np.log(own.layer_s(find_device(d), **shape) / seconds) for d, (shape, seconds) in data.items()]
            )

        yield of(solve(free, residuals))


PROMPTS = {
    "narrow": Free(0.75, 0.3, 1.4),
    "wide": Free(1.1, 0.3, 1.6),
    "start_keys": Free(100.0, 0.0, 1000.0),
    "block_us": Free(1.0, 0.0, 20.0),
    "late": Free(0.1, 0.0, 2.0),
    "memory": Free(0.83, 0.3, 1.0),
    "start_us": Free(15.0, 1.0, 80.0),
}
DECODING = {
    "start_us": Free(12.0, 2.0, 60.0),
    "block_us": Free(2.0, 0.0, 20.0),
    "memory": Free(0.85, 0.3, 1.0),
    "alone_us": Free(1.5, 0.0, 20.0),
    "again": Free(2.0, 0.05, 20.0),
    "splits": Free(16.0, 1.0, 200.0),
    "smoothness": Free(2.0, 1.0, 6.0),
}
PACKED = {True: (1, 2, 4, 1024), False: (16, 32, 1024)}
"""Heads that share a block, of prompts and of decoding: tried one by one."""


def attention(kind: str, engine: str, generation: str) -> Iterator[PromptKernel | DecodingKernel]:
    """Fit the attention of one engine on one generation."""
    rows = rows_of(kind, engine, generation)
    if not rows:
        return
    prompts = "prefill" in kind

    def of(values: dict[str, float], packed: int) -> PromptKernel | DecodingKernel:
        common = {"engine": engine, "generation": generation, "packed": packed, "memory": values["memory"],
                  "start_s": values["start_us"] * 1e-6, "block_s": values["block_us"] * 1e-6}  # fmt: skip
        if not prompts:
            rest = {name: values[name] for name in ("again", "splits", "smoothness")}
            return DecodingKernel.model_construct(**common, **rest, alone_s=values["alone_us"] * 1e-6)
        peaks = {n.removeprefix("of_peak."): v for n, v in values.items() if n.startswith("of_peak.")}
        return PromptKernel.model_construct(
            **common, of_peak=peaks, head_speed=(values["narrow"], values["wide"]), late=values["late"],
            start_keys=values["start_keys"],
        )  # fmt: skip

    best: tuple[float, PromptKernel | DecodingKernel] | None = None
    for packed in PACKED[prompts]:

        def residuals(values: dict[str, float], packed: int = packed) -> Floats:
            own = of(values, packed)
            parts = []
            for device, (columns, seconds, weights) in rows.items():
                named = dict(zip(("batch", "queries" if prompts else "keys", "heads", "kv_heads", "head_dim"), columns,
                                 strict=True))  # fmt: skip
                parts.append(weights * np.log(own.seconds(find_device(device), **named) / seconds))
            return np.concatenate(parts)

        free = PROMPTS | {f"of_peak.{d}": Free(0.6, 0.2, 1.1) for d in rows} if prompts else DECODING
        values = solve(free, residuals)
        loss = float(np.sum(np.sqrt(1.0 + (residuals(values) / SCALE) ** 2) - 1.0))
        if best is None or loss < best[0]:
            best = (loss, of(values, packed))
    assert best is not None
    yield best[1]


def show(found: Any) -> None:
    """One kernel as an entry of a list in TOML."""
    parts = []
    for name, value in found.model_dump().items():
        if isinstance(value, dict):
            inner = ", ".join(f"{key} = {number:.3g}" for key, number in value.items())
            parts.append(f"{name} = {{ {inner} }}")
        elif isinstance(value, tuple):
            parts.append(f"{name} = [{', '.join(f'{number:.3g}' for number in value)}]")
        elif isinstance(value, bool | str):
            parts.append(f"{name} = {str(value).lower()}" if isinstance(value, bool) else f'{name} = "{value}"')
        elif isinstance(value, int):
            parts.append(f"{name} = {value}")
        elif value > 1e-12:
            parts.append(f"{name} = {value:.3g}")
    print(f"    {{ {', '.join(parts)} }},", flush=True)


def main(what: str) -> None:
    """Fit and print."""
    print(f"{what} = [")
    if what == "products":
        for generation in ("ampere", "hopper", "blackwell"):
            for own in products("products, 16 bits", "bf16", generation, tuple(ENGINES), 16):
                show(own)
            for kind, format in (("products, 8 bits", "fp8"), ("products, 8 bits in blocks", "fp8-block"),
                                 ("products, 4 bits", "fp4")):  # fmt: skip
                for engine in ENGINES:
                    for own in products(kind, format, generation, (engine,), 1):
                        show(own)

    if what in ("prompts", "decoding"):
        kind = "attention, prefill" if what == "prompts" else "attention, decoding"
        for generation in ("ampere", "hopper", "blackwell"):
            for engine in ENGINES:
                for found in attention(kind, engine, generation):
                    show(found)
    if what == "experts":
        for generation in ("ampere", "hopper", "blackwell"):
            for name, format, _ in EXPERTS:
                for engine in ENGINES:
                    for own in experts(f"experts, {name}", format, generation, engine):
                        show(own)
    print("]")


if __name__ == "__main__":
    main(sys.argv[1])
