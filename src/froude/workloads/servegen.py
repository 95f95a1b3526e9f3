"""Requests drawn from ServeGen's client data: a folder of ``chunk-N-trace.csv`` and ``chunk-N-dataset.json``.

There is a pair for each client. A line of a trace is a window, ``start_s,rate,cv,family,shape,scale``: the client's
requests per second, and the family and shape of the gaps between them (the family is blank where it sent none). A
dataset gives for each window of hours the probabilities of its lengths, as text:
``{"0": {"input_tokens": "{143: 0.01, ...}", "output_tokens": "{...}"}}``.
Each client sends by a renewal process of unit mean in its own count of requests, which its rate turns into seconds; so
the measured rates are kept, bursts and all. (Their scales are fits of single gaps, and would not keep them.)
Source: Xiang et al. (2026), ServeGen: Workload Characterization and Generation of Large Language Model Serving in
Production, NSDI 2026.
"""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.workloads.trace import Trace, make_trace

REQUESTS = 1000  # unless it is said how many
FIELDS = ("input_tokens", "output_tokens")


def is_servegen(folder: Path) -> bool:
    """Whether that folder holds ServeGen's clients."""
    return any(folder.glob("chunk-*-trace.csv"))


def servegen_trace(folder: Path, seed: int = 0, requests: int | None = None) -> Trace:
    """The first ``requests`` of all clients together, from the beginning of the data.

    Raises:
        FroudeError: for a file that is missing, or does not hold what it should.
    """
    wanted = REQUESTS if requests is None else requests
    clients = [_Client(path, seed) for path in sorted(folder.glob("chunk-*-trace.csv"), key=_number)]
    starts = sorted({start for client in clients for start in client.windows})
    rows: list[tuple[Floats, Any, Any, int]] = []
    drawn = 0
    for start, end in zip(
        starts, [*starts[1:], starts[-1] + (starts[-1] - starts[-2] if starts[1:] else 600.0)], strict=True
    ):
        for number, client in enumerate(clients):
            times = client.arrivals(start, end)
            if len(times):
                rows.append((times, *client.lengths(start, len(times)), number))
                drawn += len(times)
        if drawn >= wanted:  # later windows come later
            break
    if not rows:
        raise FroudeError(f"{folder}: holds no request; no client has a rate above 0")
    trace = make_trace(
        str(folder),
        *(np.concatenate([row[column] for row in rows]) for column in range(3)),
        client=np.concatenate([np.full(len(row[0]), row[3]) for row in rows]),
        source="Xiang et al. (2026), ServeGen, NSDI 2026",
    )
    return trace.first(wanted)


@dataclass(frozen=True)
class _Window:
    rate: float
    family: str
    shape: float

    def gaps(self, rng: np.random.Generator, count: int) -> Floats:
        """Of mean 1."""
        if self.family == "weibull":
            return rng.weibull(self.shape, count) / math.gamma(1.0 + 1.0 / self.shape)
        return rng.gamma(self.shape, 1.0 / self.shape, count)


class _Client:
    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.dataset = path.with_name(path.name.replace("-trace.csv", "-dataset.json"))
        if not self.dataset.exists():
            raise FroudeError(f"{self.dataset}: no such file; {path.name} needs it for the lengths of its requests")
        self.windows = dict(self._window(line, text) for line, text in self._lines())
        self._rng = np.random.default_rng((seed, _number(path)))
        self._ahead: float | None = None  # of the next request, in requests

    def _lines(self) -> list[tuple[int, str]]:
        lines = [(i, line) for i, line in enumerate(self.path.read_text().splitlines(), start=1) if line.strip()]
        if not lines:
            raise FroudeError(f"{self.path}: holds no window")
        return lines

    def _window(self, line: int, text: str) -> tuple[float, _Window]:
        cells = [cell.strip() for cell in text.split(",")]
        try:
            start, rate, _, family, shape, _ = (cell if i == 3 else float(cell) for i, cell in enumerate(cells))
            window = _Window(float(rate), str(family).lower() if rate else "", float(shape))
        except ValueError:
            raise FroudeError(f"{self.path}: line {line} is {text!r}, no start,rate,cv,family,shape,scale") from None
        if not 0 <= window.rate < math.inf or (window.rate and not 0 < window.shape < math.inf):
            raise FroudeError(f"{self.path}: rate {rate} or shape {shape} in line {line} is out of range")
        if window.rate and window.family not in ("gamma", "weibull"):
            raise FroudeError(f"{self.path}: family {family!r} in line {line} is not known; it is Gamma or Weibull")
        return float(start), window

    def arrivals(self, start: float, end: float) -> Floats:
        """Of one window, in seconds."""
        window = self.windows.get(start)
        if window is None or not window.rate:
            return np.zeros(0)
        if self._ahead is None:
            self._ahead = float(self._rng.uniform() * window.gaps(self._rng, 1)[0])
        expected = window.rate * (end - start)
        found = np.array([self._ahead])
        while found[-1] < expected:
            more = window.gaps(self._rng, 16 + int(expected))
            found = np.concatenate([found, found[-1] + np.cumsum(more)])
        inside = int(np.searchsorted(found, expected))
        self._ahead = float(found[inside] - expected)
        times: Floats = start + found[:inside] / window.rate
        return times

    def lengths(self, start: float, count: int) -> list[Any]:
        """Tokens in and out of ``count`` requests: of the last hours that began before, or else of the first."""
        hours = [at for at in self._hours if at <= start] or list(self._hours)[:1]
        return [self._rng.choice(values, count, p=shares) for values, shares in self._hours[hours[-1]]]

    @cached_property
    def _hours(self) -> dict[float, list[tuple[Any, Floats]]]:
        found: dict[float, list[tuple[Any, Floats]]] = {}
        try:
            for at, fields in json.loads(self.dataset.read_text()).items():
                shares = [ast.literal_eval(fields[field]) for field in FIELDS]
                if all(shares):  # nothing was sent in the others
                    found[float(at)] = [
                        (
                            np.maximum(1, np.array([*some], dtype=np.int64)),
                            np.array([*some.values()]) / sum(some.values()),
                        )
                        for some in shares
                    ]
        except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, ZeroDivisionError) as error:
            raise FroudeError(
                f"{self.dataset}: not ServeGen's probabilities of {' and '.join(FIELDS)} ({error})"
            ) from None
        if not found:
            raise FroudeError(f"{self.dataset}: holds no lengths")
        return dict(sorted(found.items()))


def _number(path: Path) -> int:
    middle = path.name.split("-")[1]
    return int(middle) if middle.isdigit() else 0
