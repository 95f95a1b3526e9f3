"""What `froude run serve` is asked to do."""

from __future__ import annotations

import inspect
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from froude.core.errors import UnknownNameError
from froude.core.spec import Spec
from froude.models.architecture import Architecture
from froude.serving.policy import SCHEDULERS, Scheduler


class ServeSpec(Spec):
    """A replay of a request trace through the small engine.

    Attributes:
        model: ``smollm2-135m`` (real weights), a GGUF file, a named model or ``config.json`` (random weights), or an
            architecture written out (random weights).
        trace: a trace file or a named synthetic workload.
        rate: requests per second; the trace's own arrivals unless given.
        concurrency: closed loop: so many requests at once, the next when one completes; excludes ``rate``.
        requests: how many of the trace's requests.
        length_scale: prompt and output lengths are multiplied by this: real traces are long for a laptop.
        scheduler, scheduler_options: the policy's name, and its own knobs.
        chunk_tokens, max_seqs: token budget of an iteration; most sequences running at once.
        kv_blocks, block_tokens: size of the cache, and of a block.
        seed: of random weights, prompts and arrivals.
        threads: torch threads; 1 gives the steadiest times.
        clock: ``wall`` is real time; ``processor`` counts the processor time of the engine's thread and skips waits,
            for a machine that others use at the same time.
        calibration_s: seconds spent timing iterations, half before and half after the replay; 0 for none.
        out: folder of the run.
    """

    model: str | Architecture = "smollm2-135m"
    trace: str
    rate: float | None = Field(default=None, gt=0)
    concurrency: int | None = Field(default=None, gt=0)
    requests: int | None = Field(default=None, gt=0)
    length_scale: float = Field(default=1.0, gt=0)
    scheduler: str = "vllm-v1"
    scheduler_options: dict[str, Any] = {}
    chunk_tokens: int = Field(default=256, gt=0)
    max_seqs: int = Field(default=16, gt=0)
    kv_blocks: int = Field(default=512, gt=0)
    block_tokens: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, gt=0)
    clock: Literal["wall", "processor"] = "wall"
    calibration_s: float = Field(default=10.0, ge=0)
    out: str = "serve-run"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rate is not None and self.concurrency is not None:
            raise ValueError("rate (open loop) and concurrency (closed loop) exclude each other")
        if self.clock == "processor" and self.threads > 1:
            raise ValueError("clock 'processor' sees one thread only: set threads to 1")
        return self

    def make_scheduler(self) -> Scheduler:
        """The policy object; engine and simulator are driven by equal ones.

        Raises:
            FroudeError: naming the nearest scheduler, or the option that it does not have.
        """
        kind = SCHEDULERS.get(self.scheduler)
        options = {"max_batched_tokens": self.chunk_tokens, "max_seqs": self.max_seqs, **self.scheduler_options}
        known = inspect.signature(kind).parameters
        for name in options:
            if name not in known:
                raise UnknownNameError(f"scheduler_options of {self.scheduler}", name, known)
        return kind(**options)
