"""Several models on one set of machines: each its own, machines that change models, or all models on every machine.

Every machine has an engine for each model. `SharedFleet` lets each model keep the machines it was given. `Multiplexed`
has all models on all machines at once, the cache's memory divided among them: those with something to do take equal
turns on the devices, and a request goes to the least loaded machine, whichever its model. `Switching` gives machines to
models as they need them: an autoscaler asks for machines for each model; one that is not wanted any more takes no new
requests and, when it is empty, loads another model's weights.
Sources: Li et al. (2023), AlpaServe: Statistical Multiplexing with Model Parallelism for Deep Learning Serving,
arXiv:2302.11665; Duan et al. (2024), MuxServe, arXiv:2404.02015 (models that share devices, the cache divided); Fu et
al. (2024), ServerlessLLM, arXiv:2401.14351 (machines that load weights when they are asked for).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any

from froude.serving.autoscaling import FleetObservation, Scaler
from froude.serving.conductor import Conductor, Engine
from froude.serving.iteration import IterationTime, Prompts, ReplicaTime, WrappedTime
from froude.serving.policy import Sequence
from froude.serving.router import Router

PS = 1e12


@dataclass
class _Machine:
    """What a router sees of a machine that several models share."""

    outstanding: int
    outstanding_tokens: int


class SharedFleet(Conductor):
    """Each model keeps its machines.

    Args:
        serving: machines of each model, to begin with.
        machines: how many there are; the engine of model m on machine i is number ``i * models + m``.
        routers: one for each model.
    """

    def __init__(self, serving: list[list[int]], machines: int, routers: list[Router]) -> None:
        super().__init__()
        self.serving, self.machines, self.routers = [list(those) for those in serving], machines, routers
        self.models = len(serving)

    def begin(self, fleet: Items[Engine]) -> None:
        """Nothing is going to change."""

    def engine(self, machine: int, model: int) -> int:
        """Number of the engine of a model on a machine."""
        return machine * self.models + model

    def route(self, sequence: Sequence, fleet: Items[Engine], router: Router) -> int | None:
        """Among the machines of its model."""
        able = self.serving[sequence.model]
        chosen = self.routers[sequence.model].route(sequence, [fleet[self.engine(i, sequence.model)] for i in able])
        return self.engine(able[chosen], sequence.model)


class SharedTime(WrappedTime):
    """Iterations on devices of which only every ``ways``-th moment is one's own; the host's part is not shared."""

    def __init__(self, inner: ReplicaTime, ways: int) -> None:
        super().__init__(inner)
        self.ways = ways

    def device(self, decoding: int, context: int, prompts: Prompts, width: int = 1) -> tuple[int, int]:
        """See `ReplicaTime`."""
        first, slope = self.inner.device(decoding, context, prompts, width)
        return first * self.ways, slope * self.ways


class SharedRounds(IterationTime):
    """The same of times that do not tell devices and host apart."""

    def __init__(self, inner: IterationTime, ways: int) -> None:
        self.inner, self.ways = inner, ways

    def segment(self, decoding: int, context: int, prompts: Prompts) -> tuple[int, int, int]:
        """See `IterationTime`."""
        first, slope, valid = self.inner.segment(decoding, context, prompts)
        return first * self.ways, slope * self.ways, valid

    def joules(self, busy_s: float, idle_s: float) -> float | None:
        """See `IterationTime`."""
        return self.inner.joules(busy_s, idle_s)


def shared_time(time: IterationTime, ways: int) -> IterationTime:
    """What iterations take while so many models take turns."""
    if ways == 1:
        return time
    return SharedTime(time, ways) if isinstance(time, ReplicaTime) else SharedRounds(time, ways)


class Multiplexed(SharedFleet):
    """All models on all machines.

    Args:
        times: of an iteration of each model, alone.
    """

    def __init__(self, times: list[IterationTime], machines: int, routers: list[Router]) -> None:
        super().__init__([list(range(machines))] * len(times), machines, routers)
        self.times = [[shared_time(time, ways + 1) for ways in range(len(times))] for time in times]
        self.active_ps = 0  # machine-time in which there was something to do
        self._ways = [1] * machines
        self._since: list[int | None] = [None] * machines

    def route(self, sequence: Sequence, fleet: Items[Engine], router: Router) -> int:
        """To the machine that the router names by what all models have on it."""
        loads = []
        for machine in range(self.machines):
            engines = self._on(machine, fleet)
            requests, tokens = sum(e.outstanding for e in engines), sum(e.outstanding_tokens for e in engines)
            loads.append(_Machine(requests, tokens))
        chosen = self.routers[sequence.model].route(sequence, loads)
        number = self.engine(chosen, sequence.model)
        if not fleet[number].outstanding:
            self.at(sequence.arrival_ps + 1, partial(self._turns, chosen))
        return number

    def complete(self, sequence: Sequence, replica: int, now_ps: int) -> bool:
        """The others may have longer turns."""
        self.at(now_ps, partial(self._turns, replica // self.models))
        return True

    def summary(self) -> dict[str, Any]:
        """Machine-time in which there was something to do."""
        return {"active_s": self.active_ps / PS}

    def _on(self, machine: int, fleet: Items[Engine]) -> Items[Engine]:
        return fleet[machine * self.models : (machine + 1) * self.models]

    def _turns(self, machine: int, now_ps: int, fleet: Items[Engine]) -> None:
        engines = self._on(machine, fleet)
        active = sum(engine.outstanding > 0 for engine in engines)
        since = self._since[machine]
        if active and since is None:
            self._since[machine] = now_ps
        elif not active and since is not None:
            self.active_ps += now_ps - since
            self._since[machine] = None
        ways = max(1, active)
        if ways == self._ways[machine]:
            return
        self._ways[machine] = ways
        for model, engine in enumerate(engines):
            engine.order(partial(_retime, self.times[model][ways - 1]), now_ps)


def _retime(time: IterationTime, engine: Engine, _: int) -> None:
    engine.retime(time)


class Switching(SharedFleet):
    """Machines go where they are wanted.

    Args:
        scalers: say how many machines each model should have; all look at the same times.
        least: machines that each model keeps.
        load_ps: to load the weights of each model.

    Attributes:
        switches: how often a machine loaded other weights.
        loading_ps: how long that took, together.
    """

    def __init__(
        self,
        serving: list[list[int]],
        machines: int,
        routers: list[Router],
        scalers: list[Scaler],
        least: int,
        load_ps: list[int],
    ) -> None:
        super().__init__(serving, machines, routers)
        self.scalers, self.least, self.load_ps = scalers, least, load_ps
        self.switches = self.loading_ps = 0
        self._loading: list[list[int]] = [[] for _ in serving]
        self._draining: list[list[int]] = [[] for _ in serving]
        self._held: list[list[Sequence]] = [[] for _ in serving]
        self._wanted = [len(those) for those in serving]

    def begin(self, fleet: Items[Engine]) -> None:
        """The first look."""
        self._after(-1)

    def summary(self) -> dict[str, Any]:
        """How often machines changed their model, and how long they were busy with that."""
        return {"switches": self.switches, "loading_s": self.loading_ps / PS}

    def route(self, sequence: Sequence, fleet: Items[Engine], router: Router) -> int | None:
        """Among the machines of its model; held back while there is none."""
        if self.serving[sequence.model]:
            return super().route(sequence, fleet, router)
        self._held[sequence.model].append(sequence)
        self.carried += 1
        self.at(sequence.arrival_ps + 1, self._share)
        return None

    def complete(self, sequence: Sequence, replica: int, now_ps: int) -> bool:
        """A machine that is not wanted any more may be empty now."""
        if replica // self.models in self._draining[sequence.model]:
            self.at(now_ps, self._move)
        return True

    def _after(self, now_ps: int) -> None:
        at_s = self.scalers[0].next_change_s(now_ps / PS)
        self.at(max(now_ps + 1, round(at_s * PS)), self._look)

    def _look(self, now_ps: int, fleet: Items[Engine]) -> None:
        for model, scaler in enumerate(self.scalers):
            serving, starting = len(self.serving[model]), len(self._loading[model])
            seen = FleetObservation(now_ps / PS, serving, starting, self._outstanding(model, fleet))
            if serving + starting:
                self._wanted[model] = scaler.observe(seen)
        self._share(now_ps, fleet)
        self._after(now_ps)

    def _outstanding(self, model: int, fleet: Items[Engine]) -> int:
        return len(self._held[model]) + sum(fleet[self.engine(i, model)].outstanding for i in range(self.machines))

    def _share(self, now_ps: int, fleet: Items[Engine]) -> None:
        """Who gets how many: what it wants, cut in proportion where all together want too many."""
        outstanding = [self._outstanding(model, fleet) for model in range(self.models)]
        busy = [requests > 0 for requests in outstanding]
        wanted = [max(n, self.least, int(some)) for n, some in zip(self._wanted, busy, strict=True)]
        if sum(wanted) > self.machines:
            wanted = [n if some else min(n, self.least) for n, some in zip(wanted, busy, strict=True)]
        while sum(wanted) > self.machines:
            most = max(range(self.models), key=lambda m: (wanted[m], -outstanding[m], -m))
            wanted[most] -= 1
        for model, count in enumerate(wanted):
            serving = self.serving[model]
            while len(serving) + len(self._loading[model]) > count and serving:
                self._draining[model].append(serving.pop())
        self._wanted = wanted
        self._move(now_ps, fleet)

    def _move(self, now_ps: int, fleet: Items[Engine]) -> None:
        """Machines that a model had and wants again, then those that are empty, by number."""
        for model, count in enumerate(self._wanted):
            serving, draining = self.serving[model], self._draining[model]
            while len(serving) + len(self._loading[model]) < count and draining:
                serving.append(draining.pop(0))
                serving.sort()
            self._hand_over(model, now_ps)
        for model, count in enumerate(self._wanted):
            while len(self.serving[model]) + len(self._loading[model]) < count:
                empty = [
                    (machine, other)
                    for other, those in enumerate(self._draining)
                    for machine in those
                    if not fleet[self.engine(machine, other)].outstanding
                ]
                if not empty:
                    break
                machine, other = min(empty)
                self._draining[other].remove(machine)
                self._loading[model].append(machine)
                self.switches += 1
                self.loading_ps += self.load_ps[model]
                self.at(now_ps + max(1, self.load_ps[model]), partial(self._loaded, machine, model))

    def _loaded(self, machine: int, model: int, now_ps: int, fleet: Items[Engine]) -> None:
        self._loading[model].remove(machine)
        self.serving[model] = sorted([*self.serving[model], machine])
        self._hand_over(model, now_ps)

    def _hand_over(self, model: int, now_ps: int) -> None:
        """Requests that were held back go to the first machine there is."""
        if self._held[model] and self.serving[model]:
            held, self._held[model] = self._held[model], []
            self.give(held, self.engine(self.serving[model][0], model), now_ps)
