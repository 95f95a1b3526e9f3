"""A run on disk: `requests.jsonl` and `meta.json` in the form of published vLLM runs, iterations, and a timeline.

Times in the files are seconds since 1970 on one steady clock; latencies count from when a request was due.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from froude.core.errors import FroudeError
from froude.core.spec import write_atomically
from froude.program.trace import event, write_trace
from froude.runtime.engine.calibration import Measured
from froude.runtime.engine.replay import IterationLog, Log, RequestLog

_PROMPTS = "prompts"
_COLUMNS = ("start_s", "duration_s", "processor_s", "decoding", "context_tokens", "prefill_tokens", _PROMPTS)
_STATE = ("preempted", "waiting", "used_blocks", "copied_blocks", "replica")


def write_run(
    out: Path, log: Log, meta: Mapping[str, Any], before: Iterable[Measured], after: Iterable[Measured]
) -> None:
    """Write everything about a run into the folder ``out``."""
    started = datetime.fromtimestamp(log.started_at, UTC)
    finished = [request for request in log.requests.values() if request.finished]
    rows = [json.dumps(_request(request, log.started_at)) for request in finished]
    write_atomically(out / "requests.jsonl", "".join(row + "\n" for row in rows))
    summary = {
        "schema_version": 1,
        **meta,
        "hardware": hardware(),
        "num_requests": len(log.requests),
        "completed": len(finished),
        "interrupted": log.interrupted,
        "started_at": started.isoformat(),
        "finished_at": datetime.fromtimestamp(log.started_at + log.duration_s, UTC).isoformat(),
        "duration_s": log.duration_s,
        "output_tokens": log.output_tokens,
        "iterations": len(log.iterations),
        "preemptions": sum(request.preemptions for request in log.requests.values()),
    }
    write_atomically(out / "meta.json", json.dumps(summary, indent=2) + "\n")
    write_atomically(out / "iterations.csv", _iterations(log.iterations))
    write_atomically(out / "calibration.csv", _calibration(before, after))
    write_trace(out / "timeline.json", _timeline(log))


def _request(request: RequestLog, started_at: float) -> dict[str, Any]:
    sequence, tokens = request.sequence, request.token_s
    first_s, last_s = tokens[0], tokens[-1]
    return {
        "request_id": f"froude-{sequence.id}",
        "input_toks": sequence.prompt_tokens,
        "output_toks": len(tokens),
        "max_tokens": sequence.limit_tokens,
        "client": sequence.client,
        **({"hash_ids": sequence.prefix} if sequence.prefix else {}),
        "arrival_time": started_at + request.arrival_s,
        "queued_ts": started_at + request.arrival_s,
        "scheduled_ts": started_at + (request.scheduled_s or 0.0),
        "first_token_ts": started_at + first_s,
        "last_token_ts": started_at + last_s,
        "ttft_s": first_s - request.arrival_s,
        "tpot_s": (last_s - first_s) / (len(tokens) - 1) if len(tokens) > 1 else None,
        "e2e_s": last_s - request.arrival_s,
        "preemptions": request.preemptions,
        "token_ts": [started_at + t for t in tokens],
    }


def hardware() -> dict[str, Any]:
    """This machine, as far as it can be told without asking for rights."""
    name = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # no Linux: the platform's own word has to do
    return {"processor": name or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}


def _iterations(iterations: Iterable[IterationLog]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((*_COLUMNS, *_STATE))
    for it in iterations:
        row = _composition(it.decoding, it.context_tokens, it.prompts)
        state = (it.preempted, it.waiting, it.used_blocks, it.copied[1], it.replica)
        rows.writerow((it.start_s, it.duration_s, it.processor_s, *row, *state))
    return text.getvalue()


def _calibration(before: Iterable[Measured], after: Iterable[Measured]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("when", *_COLUMNS[1:]))
    for when, measured in (("before", before), ("after", after)):
        for m in measured:
            rows.writerow((when, m.duration_s, m.processor_s, *_composition(m.decoding, m.context, m.prompts)))
    return text.getvalue()


def _composition(decoding: int, context: int, prompts: tuple[tuple[int, int], ...]) -> tuple[int, int, int, str]:
    """Prompts as ``tokens+cached`` joined by blanks."""
    written = " ".join(f"{tokens}+{prefix}" for tokens, prefix in prompts)
    return decoding, context, sum(tokens for tokens, _ in prompts), written


def read_measured(path: Path) -> list[Measured]:
    """Timed iterations from an `iterations.csv` or a `calibration.csv`.

    Raises:
        FroudeError: when the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Measured(
                    int(row["decoding"]),
                    int(row["context_tokens"]),
                    tuple(_chunk(chunk) for chunk in row[_PROMPTS].split()),
                    float(row["duration_s"]),
                    float(row["processor_s"]),
                )
                for row in csv.DictReader(file)
                if not int(row.get("copied_blocks") or 0)  # copies are no part of an iteration's time
            ]
    except FileNotFoundError:
        raise FroudeError(f"{path}: no such file") from None
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise FroudeError(f"{path}: not a table of timed iterations ({error})") from None


def _chunk(text: str) -> tuple[int, int]:
    tokens, prefix = text.split("+")
    return int(tokens), int(prefix)


def _timeline(log: Log) -> list[dict[str, Any]]:
    """Iterations on one track, each request on its own."""
    events: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 0, "args": {"name": "engines"}},
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "requests"}},
    ]
    for it in log.iterations:
        tokens = sum(count for count, _ in it.prompts)
        kind = "mixed" if tokens and it.decoding else "prefill" if tokens else "decode"
        args = {"decoding": it.decoding, "prefill_tokens": tokens, "waiting": it.waiting, "used_blocks": it.used_blocks}
        events.append(event(kind, 0, it.replica, it.start_s, it.duration_s, args))
    for request in log.requests.values():
        if request.finished:
            times = (request.arrival_s, request.scheduled_s or 0.0, *(request.token_s[i] for i in (0, -1)))
            for name, start_s, end_s in zip(("queued", "prefill", "decode"), times, times[1:], strict=False):
                events.append(event(name, 1, request.sequence.id, start_s, end_s - start_s))
    return events
