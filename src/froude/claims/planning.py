"""One arm of a claim about fleets: devices to choose among, and what the cheapest fleet costs."""

from __future__ import annotations

from pydantic import Field

from froude.claims.metric import Metric
from froude.claims.parts import Described, architecture, cluster
from froude.core.spec import Spec
from froude.planning.fleet import ServePlan, plan_serve


class FleetArm(Spec):
    """A question to ``froude plan serve``.

    Attributes:
        model, devices: see `froude.claims.parts`; each of ``devices`` is a cluster of one node.
        trace, rate, slo, attainment, requests, seed: the load, as for `froude.plan_serve`.
        engine, schedulers, tensor_parallel: what is tried.
    """

    model: Described
    devices: tuple[Described, ...] = Field(min_length=1)
    trace: str
    rate: float = Field(gt=0)
    slo: str
    attainment: float = Field(default=0.9, gt=0, le=1)
    requests: int | None = None
    seed: int = 0
    engine: str = "vllm"
    schedulers: str | None = None
    tensor_parallel: tuple[int, ...] = (1,)

    def run(self) -> ServePlan:
        """The cheapest fleets."""
        return plan_serve(
            architecture(self.model),
            [cluster(machines) for machines in self.devices],
            self.trace,
            rate=self.rate,
            slo=self.slo,
            attainment=self.attainment,
            requests=self.requests,
            seed=self.seed,
            engine=self.engine,
            schedulers=self.schedulers,
            tensor_parallel=self.tensor_parallel,
        )


METRICS: dict[str, Metric[ServePlan]] = {
    "usd_per_hour": Metric("lower", lambda plan: plan.fleets[0].usd_per_hour),
}
