"""Several models on one set of machines, as a user describes them: names or a YAML file, and the load of each."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from froude.core.errors import FroudeError, InvalidValueError, UnknownNameError
from froude.core.spec import Spec
from froude.serving.load import make_load
from froude.workloads.trace import Ints, Trace, make_trace


class SharedModel(Spec):
    """A model of a fleet.

    Attributes:
        model: name, or a ``config.json``.
        name: what it is called in results, and in the column ``model`` of a trace.
        share: of the requests of a trace that does not say which model they are for.
        trace, rate, arrivals: a load of its own.
        machines: that it has where each model keeps its own; in proportion to shares where none is given.
        slo: targets of its own.
    """

    model: str
    name: str = ""
    share: float = Field(default=1.0, gt=0)
    trace: str | None = None
    rate: float | None = Field(default=None, gt=0)
    arrivals: str = "poisson"
    machines: int | None = Field(default=None, ge=1)
    slo: str | None = None

    @property
    def title(self) -> str:
        """Its name in results."""
        return self.name or self.model


class ModelFleet(Spec):
    """What a YAML file of several models says."""

    models: tuple[SharedModel, ...] = Field(min_length=1)


def read_fleet(models: str | Path | ModelFleet) -> ModelFleet:
    """``A,B``, or a YAML file.

    Raises:
        FroudeError: naming what is wrong with it.
    """
    if isinstance(models, ModelFleet):
        return models
    if str(models).endswith((".yaml", ".yml")):
        return ModelFleet.read(models)
    names = [name.strip() for name in str(models).split(",") if name.strip()]
    return ModelFleet(models=tuple(SharedModel(model=name) for name in names))


def make_loads(
    fleet: ModelFleet,
    trace: str | Path | Trace | None,
    rate: float | None,
    arrivals: str,
    concurrency: int | None,
    time_scale: float | None,
    requests: int | None,
    seed: int,
) -> tuple[Trace, Ints]:
    """All requests in order of arrival, and the model that each is for."""
    shares = np.array([m.share for m in fleet.models])
    shares = shares / shares.sum()
    if any(m.trace is not None for m in fleet.models):
        return _own_loads(fleet, trace, concurrency, time_scale, requests, seed, shares)
    if trace is None:
        raise FroudeError("trace: none is given; name one, or give every model one of its own")
    load = make_load(
        trace,
        rate=rate,
        arrivals=arrivals,
        concurrency=concurrency,
        time_scale=time_scale,
        requests=requests,
        seed=seed,
    )
    _independent(load)
    if load.model is None:
        rng = np.random.default_rng((seed, 11))
        return load, rng.choice(len(shares), len(load), p=shares)
    titles = [m.title for m in fleet.models]
    unknown = next((name for name in load.model if name not in titles), None)
    if unknown is not None:
        raise UnknownNameError(f"{load.name}: model", unknown, titles)
    return load, np.array([titles.index(name) for name in load.model])


def _independent(load: Trace) -> None:
    if load.after is not None:
        raise InvalidValueError("trace", load.name, "has requests that wait for each other, as several models cannot")


def _own_loads(
    fleet: ModelFleet,
    trace: str | Path | Trace | None,
    concurrency: int | None,
    time_scale: float | None,
    requests: int | None,
    seed: int,
    shares: np.ndarray[Any, Any],
) -> tuple[Trace, Ints]:
    if concurrency is not None:
        raise InvalidValueError(
            "concurrency", concurrency, "cannot be combined with models that have traces of their own"
        )
    parts = []
    rates = [m.rate for m in fleet.models]
    if requests is not None and None not in rates:
        shares = np.array(rates) / sum(r for r in rates if r)
    for m, (spec, share) in enumerate(zip(fleet.models, shares, strict=True)):
        source = spec.trace or trace
        if source is None:
            raise FroudeError(f"trace: {spec.title} has none of its own, and there is none for all")
        stretched = time_scale if spec.rate is None else None
        count = None if requests is None else max(1, round(requests * share))
        part = make_load(
            source, rate=spec.rate, arrivals=spec.arrivals, time_scale=stretched, requests=count, seed=seed + m
        )
        _independent(part)
        parts.append(part)
    arrival_s = np.concatenate([part.arrival_s for part in parts])
    of_model = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    lengths = [np.concatenate([getattr(p, name) for p in parts]) for name in ("input_tokens", "output_tokens")]
    order = np.argsort(arrival_s, kind="stable")
    return make_trace("several models", arrival_s, *lengths), of_model[order]


def dealt(fleet: ModelFleet, machines: int) -> list[list[int]]:
    """Machines of each model: as many as it says, else one each and the rest in proportion to shares."""
    counts = [m.machines or 1 for m in fleet.models]
    if sum(counts) > machines:
        raise InvalidValueError(
            "machines", sum(counts), f"are more than the cluster has ({machines}), one a model at least"
        )
    free = [i for i, m in enumerate(fleet.models) if m.machines is None]
    for _ in range(machines - sum(counts) if free else 0):
        neediest = max(free, key=lambda i: (fleet.models[i].share / counts[i], -i))
        counts[neediest] += 1
    edges = np.cumsum([0, *counts]).tolist()
    return [list(range(a, b)) for a, b in itertools.pairwise(edges)]
