"""Readers of published trace formats, told apart by their columns; gzip too.

- Azure 2023 and 2024 (``TIMESTAMP,ContextTokens,GeneratedTokens``): Patel et al. (2024), Splitwise, arXiv:2311.18677.
- Mooncake JSONL (``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids`` of 512 tokens each): Qin et al.
  (2024), Mooncake, arXiv:2407.00079.
- Vidur CSV (``arrived_at,num_prefill_tokens,num_decode_tokens``): Agrawal et al. (2024), arXiv:2405.05465.
- BurstGPT CSV (``Timestamp,Model,Request tokens,Response tokens,...``; failed requests, of no response, are left out):
  Wang et al. (2024), BurstGPT, arXiv:2401.17644.
- vLLM's ``requests.jsonl``: every request time-stamped by the engine.
- Any CSV or Parquet file with columns for arrival in seconds and for tokens in and out.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from froude.core.errors import FroudeError, suggestion
from froude.workloads.synthetic import NAMES, is_synthetic, synthetic_trace
from froude.workloads.trace import Trace, make_trace

# Names a generic CSV may use; the first is what an error asks for.
ARRIVAL = ("arrival_s", "arrived_at", "arrival_time", "arrival", "timestamp", "time", "TIMESTAMP", "Timestamp")
INPUT = ("input_tokens", "num_prefill_tokens", "prompt_tokens", "ContextTokens", "Request tokens", "input_length")
OUTPUT = ("output_tokens", "num_decode_tokens", "completion_tokens", "GeneratedTokens", "Response tokens")
MOONCAKE_BLOCK_TOKENS = 512


def load_trace(source: str, seed: int = 0, requests: int | None = None) -> Trace:
    """A trace from a file, a folder with a ``requests.jsonl``, or the name of a synthetic workload.

    Raises:
        FroudeError: one sentence for a missing or truncated file, a missing column, a bad value.
    """
    if is_synthetic(source):
        return synthetic_trace(source, seed, requests, read=load_trace)
    path = Path(source)
    if path.is_dir():
        path = path / "requests.jsonl"
    if not path.exists():
        known = ", ".join(f"{name}:..." for name in NAMES)
        raise FroudeError(f"trace: {source!r} is no file; give a file or a synthetic workload ({known})")
    trace = _read(str(path), path)
    return trace.first(requests) if requests is not None else trace


def _read(name: str, path: Path) -> Trace:
    if path.suffix == ".parquet":
        return _parquet(name, path)
    text = _text(path)
    suffixes = [s for s in path.suffixes if s != ".gz"]
    if suffixes and suffixes[-1] in {".jsonl", ".json"}:
        return _jsonl(name, text)
    return _csv(name, text)


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise FroudeError(f"{path}: truncated or damaged gzip file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FroudeError(f"{path}: cannot be read ({error})") from None


# -- CSV ------------------------------------------------------------------------------------------------------------


def _csv(name: str, text: str) -> Trace:
    try:
        table = pl.read_csv(io.StringIO(text), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise FroudeError(f"{name}: not a table of comma-separated values ({str(error).splitlines()[0]})") from None
    return _table(name, table)


def _parquet(name: str, path: Path) -> Trace:
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise FroudeError(f"{name}: not a Parquet file ({str(error).splitlines()[0]})") from None
    flat = [column for column, kind in table.schema.items() if not kind.is_nested()]
    return _table(name, table.select(pl.col(flat).cast(pl.String)))


def _table(name: str, table: pl.DataFrame) -> Trace:
    source = ""
    if "Response tokens" in table.columns:
        table = table.filter(pl.col("Response tokens") != "0")
        source = "Wang et al. (2024), BurstGPT, arXiv:2401.17644"
    inputs = _integers(name, table, _column(name, table, INPUT))
    outputs = _integers(name, table, _column(name, table, OUTPUT))
    arrivals = _times(name, table, _column(name, table, ARRIVAL))
    if "num_prefill_tokens" in table.columns:
        source = "Agrawal et al. (2024), Vidur, arXiv:2405.05465"
    if "ContextTokens" in table.columns:
        source = "Patel et al. (2024), Splitwise, arXiv:2311.18677"
        # A request that generated nothing still emits the token that ends it.
        outputs = np.maximum(outputs, 1)
    more: dict[str, Any] = {
        field: _times(name, table, field) for field in ("priority", "think_s") if field in table.columns
    }
    if "client" in table.columns:  # any text; equal texts are one client
        more["client"] = table["client"].fill_null("").rank("dense").to_numpy()
    if "after" in table.columns:
        more["after"] = _after(name, table["after"].cast(pl.String).fill_null("").to_list())
    return make_trace(name, arrivals, inputs, outputs, source=source, **more)


def _after(name: str, cells: list[str]) -> list[tuple[int, ...]]:
    """``0;3``: numbers of the requests that a request waits for, the first line of data being 0."""
    found = []
    for row, cell in enumerate(cells):
        try:
            before = tuple(int(part) for part in cell.split(";") if part.strip())
        except ValueError:
            before = (-1,)
        if any(not 0 <= other < row for other in before):
            raise FroudeError(f"{name}: after is {cell!r} in line {row + 2}, where numbers of earlier requests belong")
        found.append(before)
    return found


def _column(name: str, table: pl.DataFrame, choices: tuple[str, ...]) -> str:
    for choice in choices:
        if choice in table.columns:
            return choice
    raise FroudeError(f"{name}: column {choices[0]!r} is missing; {suggestion(choices[0], table.columns)}")


def _integers(name: str, table: pl.DataFrame, column: str) -> Any:
    values = table[column].cast(pl.Float64, strict=False)
    _all_present(name, column, table, values)
    return values.to_numpy().astype(np.int64)


def _times(name: str, table: pl.DataFrame, column: str) -> Any:
    values = table[column].cast(pl.Float64, strict=False)
    if values.null_count() == len(values):
        stamps = table[column].str.replace("Z$", "").str.replace(r"[+]00:00$", "")
        times = stamps.str.to_datetime(strict=False, time_unit="ns")
        values = times.dt.epoch("ns").cast(pl.Float64) / 1e9
        if times.null_count() == 0:
            # Nanoseconds since 1970 do not fit a float: subtract the first as integers.
            first = times.dt.epoch("ns")
            values = (first - first.min()).cast(pl.Float64) / 1e9
    _all_present(name, column, table, values)
    return values.to_numpy()


def _all_present(name: str, column: str, table: pl.DataFrame, values: pl.Series) -> None:
    missing = values.is_null() | values.is_nan()
    if missing.any():
        row = int(missing.arg_max() or 0)
        found = table[column][row]
        last = row == len(values) - 1
        truncated = " (the file looks truncated)" if last else ""
        raise FroudeError(f"{name}: {column} is {found!r} in line {row + 2}, where a number belongs{truncated}")


# -- JSON lines -----------------------------------------------------------------------------------------------------


def _jsonl(name: str, text: str) -> Trace:
    rows: list[Mapping[str, Any]] = []
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            truncated = " (the file looks truncated)" if number == len(lines) else ""
            raise FroudeError(f"{name}: line {number} is not valid JSON{truncated}") from None
        if not isinstance(row, dict):
            raise FroudeError(f"{name}: line {number} is not a JSON object")
        rows.append(row)
    if not rows:
        raise FroudeError(f"{name}: holds no request")
    if "input_toks" in rows[0]:
        return _vllm(name, rows)
    return _mooncake(name, rows)


def _values(name: str, rows: list[Mapping[str, Any]], field: str) -> list[float]:
    for number, row in enumerate(rows, start=1):
        value = row.get(field)
        if value is None:
            raise FroudeError(f"{name}: field {field!r} is missing in line {number}; {suggestion(field, row)}")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise FroudeError(f"{name}: {field} is {value!r} in line {number}, where a number belongs")
    return [row[field] for row in rows]


def _mooncake(name: str, rows: list[Mapping[str, Any]]) -> Trace:
    arrival_s = [ms / 1e3 for ms in _values(name, rows, "timestamp")]
    more: dict[str, Any] = {}
    if all(isinstance(row.get("hash_ids"), list) for row in rows):
        more = {"prefix_ids": [row["hash_ids"] for row in rows], "prefix_block_tokens": MOONCAKE_BLOCK_TOKENS}
    return make_trace(
        name,
        arrival_s,
        _values(name, rows, "input_length"),
        _values(name, rows, "output_length"),
        source="Qin et al. (2024), Mooncake, arXiv:2407.00079",
        **more,
    )


def _vllm(name: str, rows: list[Mapping[str, Any]]) -> Trace:
    """Latencies count from ``queued_ts``, on the engine's own clock, as its other time stamps do."""
    queued, first, last = (
        np.array(_values(name, rows, field)) for field in ("queued_ts", "first_token_ts", "last_token_ts")
    )
    outputs = np.array(_values(name, rows, "output_toks"))
    measured = {
        "ttft_s": first - queued,
        "e2e_s": last - queued,
        "tpot_s": (last - first) / np.maximum(outputs - 1, 1),
    }
    more: dict[str, Any] = {}
    if "client" in rows[0]:
        more["client"] = _values(name, rows, "client")
    return make_trace(
        name,
        _values(name, rows, "arrival_time"),
        _values(name, rows, "input_toks"),
        outputs,
        measured=measured,
        source="vLLM request log",
        **more,
    )
