"""What serves the loads: a model that is loaded once, and an engine around it for one replay after another."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Items

import torch

from froude.core.errors import FroudeError
from froude.models.architecture import Architecture
from froude.runtime.engine.cache import BlockPool
from froude.runtime.engine.calibration import Measured
from froude.runtime.engine.clock import CLOCKS
from froude.runtime.engine.engine import Engine
from froude.runtime.engine.probe import Composition, probe
from froude.runtime.engine.replay import Arrival, Log, replay
from froude.runtime.engine.spec import ServeSpec
from froude.runtime.models.llama import check_runnable
from froude.runtime.models.load import architecture_of, load_model

_FLOAT_BYTES = 4
_COPIES = 9
OnRequests = Callable[[int, float], None]
"""Told how many requests are complete, and the time."""


class Host(ABC):
    """Serves specs that agree on everything but load and policies.

    Attributes:
        model_name: of the model.
        vocab: token ids that prompts may have.
        spec: what it was opened with.
    """

    model_name: str
    vocab: int
    spec: ServeSpec

    @abstractmethod
    def check(self, spec: ServeSpec, arrivals: Items[Arrival]) -> None:
        """Refuse what could never run, before anything does.

        Raises:
            FroudeError: naming what is too small.
        """

    @abstractmethod
    def serve(self, spec: ServeSpec, arrivals: Items[Arrival], on_progress: OnRequests | None = None) -> Log:
        """Serve the requests as they arrive."""

    def probe(self, todo: Items[Composition], budget_s: float, on_progress: Callable[[float], None]) -> list[Measured]:
        """Time iterations of those compositions, where the engine lets itself be told what to compute."""
        return []

    def copying(self) -> tuple[float, float] | None:
        """Seconds to swap a sequence, apart from its blocks, and for each block; None where nothing is swapped."""
        return None

    def close(self) -> None:
        """Nothing more is served."""
        return


class FroudeHost(Host):
    """The small engine, in this process."""

    def __init__(self, spec: ServeSpec) -> None:
        self.spec, self.architecture = spec, architecture_of(spec.model)
        self.model_name, self.vocab = self.architecture.name, self.architecture.vocab
        check_memory(self.architecture, spec)
        torch.set_num_threads(spec.threads)
        self.model = load_model(spec.model, spec.seed)
        self.pool = BlockPool(self.architecture, spec.kv_blocks, spec.block_tokens)
        self._pools = {(spec.kv_blocks, spec.block_tokens): self.pool}
        self.host = BlockPool(self.architecture, spec.swap_blocks, spec.block_tokens) if spec.swap_blocks else None

    def check(self, spec: ServeSpec, arrivals: Items[Arrival]) -> None:
        """See `Host`."""
        engine = self.engine(spec)
        for arrival in arrivals:
            engine.check(arrival.sequence)

    def serve(self, spec: ServeSpec, arrivals: Items[Arrival], on_progress: OnRequests | None = None) -> Log:
        """See `Host`."""
        return replay(self.engine(spec), arrivals, CLOCKS[spec.clock], spec.concurrency, on_progress)

    def probe(self, todo: Items[Composition], budget_s: float, on_progress: Callable[[float], None]) -> list[Measured]:
        """See `Host`."""
        return probe(self.model, self.pool, todo, budget_s, CLOCKS[self.spec.clock], on_progress)

    def copying(self) -> tuple[float, float] | None:
        """See `Host`. Copies of one block and of all that fit, several times."""
        if self.host is None:
            return None
        most = min(self.pool.blocks, self.host.blocks)
        few, many = (self._copy_s(blocks) for blocks in (1, most))
        block_s = max(0.0, (many - few) / max(1, most - 1))
        return max(0.0, few - block_s), block_s

    def _copy_s(self, blocks: int) -> float:
        assert self.host is not None
        ids, ticking = list(range(blocks)), CLOCKS[self.spec.clock]()
        took = []
        for _ in range(_COPIES):
            start_s = ticking.now_s()
            self.pool.copy(ids, self.host, ids)
            took.append(ticking.now_s() - start_s)
        return statistics.median(took)

    def engine(self, spec: ServeSpec) -> Engine:
        """A fresh engine around model and pool."""
        size = (spec.kv_blocks, spec.block_tokens)
        if size not in self._pools:
            self._pools[size] = BlockPool(self.architecture, *size)
        self.pool = self._pools[size]
        self.pool.give_back_all()
        prefixes = None if spec.prefix_cache == "none" else spec.make_prefixes(spec.load())
        return Engine(self.model, spec.make_scheduler(), self.pool, prefixes, self.host)


class VllmHost(Host):
    """vLLM, in this process."""

    def __init__(self, spec: ServeSpec) -> None:
        from froude.runtime.engine.vllm_engine import VllmEngine

        self.spec, self.architecture = spec, architecture_of(spec.model)
        self.model_name, self.vocab = self.architecture.name, self.architecture.vocab
        check_memory(self.architecture, spec)
        torch.set_num_threads(spec.threads)
        self.engine = VllmEngine(self.architecture, spec)

    def check(self, spec: ServeSpec, arrivals: Items[Arrival]) -> None:
        """See `Host`."""
        for arrival in arrivals:
            self.engine.check(arrival.sequence)

    def serve(self, spec: ServeSpec, arrivals: Items[Arrival], on_progress: OnRequests | None = None) -> Log:
        """See `Host`."""
        return replay(self.engine, arrivals, CLOCKS[spec.clock], spec.concurrency, on_progress)


def open_host(spec: ServeSpec) -> Host:
    """The host that a spec asks for.

    Raises:
        FroudeError: when what it needs is not installed, or does not fit.
    """
    if spec.engine == "endpoint":
        from froude.runtime.engine.endpoint import EndpointHost

        return EndpointHost(spec)
    if spec.engine == "vllm":
        return VllmHost(spec)
    if spec.replicas > 1:
        from froude.runtime.engine.replicas import ReplicatedHost

        return ReplicatedHost(spec)
    return FroudeHost(spec)


def check_memory(architecture: Architecture, spec: ServeSpec) -> None:
    """Refuse what cannot fit, before anything is allocated."""
    import psutil

    check_runnable(architecture)
    cache_tokens = (spec.kv_blocks + spec.swap_blocks) * spec.block_tokens
    weights = architecture.parameters * _FLOAT_BYTES
    needed = spec.replicas * (weights + cache_tokens * architecture.kv_bytes_per_token(_FLOAT_BYTES))
    free = psutil.virtual_memory().available
    if needed > free:
        raise FroudeError(
            f"model: {architecture.name!r} with {spec.kv_blocks} kv_blocks needs {needed / 2**30:.1f} GiB; "
            f"this machine has {free / 2**30:.1f} GiB free"
        )
