"""A budget to a plan: model size, tokens, epochs, batch, learning rate and loss for FLOPs, dollars or days.

The law divides the FLOPs; how many FLOPs a cluster gives comes from the predicted step of a model of that size on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.core.estimate import Estimate
from froude.laws.allocation import Allocation, allocate, least_flops
from froude.laws.api import load
from froude.laws.fitted import FittedLaw, interval
from froude.planning.choices import Choices, choose
from froude.planning.knee import TargetPoint, fastest, knee, time_to_target
from froude.planning.pace import SECONDS_PER_DAY, Pace, architecture_of, measure_pace

Split = Callable[[float], Allocation]

DEFAULT_LAW, DEFAULT_REPEATED = "besiroglu", "data-constrained"
ROUNDS = 6  # of budget against the pace of the model that it buys; converges in two or three
CLOSE = 0.01


@dataclass(frozen=True)
class BudgetPlan:
    """What a budget buys. Estimates are 80% intervals; ``days`` and ``usd`` are None without a cluster or price."""

    law: str
    params: Estimate
    tokens: Estimate
    epochs: Estimate
    batch_tokens: Estimate
    critical_batch_tokens: Estimate
    learning_rate: Estimate
    loss: Estimate | None
    flops: Estimate
    training_flops: Estimate
    days: Estimate | None
    usd: Estimate | None
    cluster: str | None
    devices: int | None
    choices: Choices
    fitted: FittedLaw
    unique_tokens: float | None
    target_points: tuple[TargetPoint, ...]
    frontier: tuple[tuple[float, float, float], ...]
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...] = field(default=())

    @property
    def batches(self) -> tuple[TargetPoint, ...]:
        """Time to target against batch on the cluster asked for; empty without one."""
        return tuple(point for point in self.target_points if point.devices == self.devices)

    @property
    def knee(self) -> TargetPoint | None:
        """How many devices, at which batch, before device time is wasted; None without a cluster."""
        return knee(self.target_points)

    def json(self) -> dict[str, object]:
        """The contract of ``froude plan budget --json``, without its envelope."""
        nothing = {"value": None, "low": None, "high": None}
        estimates = {
            name: nothing if (value := getattr(self, name)) is None else value.json()
            for name in (
                "params",
                "tokens",
                "epochs",
                "batch_tokens",
                "critical_batch_tokens",
                "learning_rate",
                "loss",
                "flops",
                "training_flops",
                "days",
                "usd",
            )
        }
        best = min(self.batches, key=lambda point: point.days, default=None)
        turn = self.knee
        return {
            **estimates,
            **self.choices.json(),
            "law": self.law,
            "time_to_target": [point.json() for point in self.batches],
            "fastest_batch_tokens": best.batch_tokens if best else None,
            "time_to_target_by_devices": [point.json() for point in fastest(self.target_points)],
            "knee": turn.json() if turn else None,
            "frontier": [{"flops": c, "params": n, "tokens": d} for c, n, d in self.frontier],
        }


def plan_budget(
    *,
    flops: float | None = None,
    usd: float | None = None,
    days: float | None = None,
    cluster: str | None = None,
    law: str | None = None,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    target_loss: float | None = None,
) -> BudgetPlan:
    """Plan a training run for exactly one of: FLOPs, dollars, days (both on a cluster), or a target loss.

    Args:
        flops: lifetime budget: training, and serving ``inference_tokens`` afterwards.
        usd, days: of training on ``cluster``.
        cluster: as on the command line; with ``flops`` or ``target_loss`` it adds days and dollars.
        law: a law's name, ``NAME/SET`` or a fitted file.
        inference_tokens: to be served over the model's life.
        unique_tokens: data at hand; more tokens than these are repeated.
        target_loss: find the smallest budget that reaches it.

    Raises:
        FroudeError: not exactly one budget, a missing cluster or price, or a law that cannot divide a budget.
    """
    given = [name for name, value in _budgets(flops, usd, days, target_loss) if value is not None]
    if len(given) != 1:
        raise FroudeError(
            "budget: give exactly one of --flops, --usd, --days and --target-loss"
            + (f"; these were given: {', '.join(given)}" if given else "")
        )
    for name, value in (*_budgets(flops, usd, days, target_loss), ("--unique-tokens", unique_tokens)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InvalidValueError(name, value, "must be a positive number")
    if not np.isfinite(inference_tokens) or inference_tokens < 0:
        raise InvalidValueError("--inference-tokens", inference_tokens, "must not be negative")
    if given[0] in ("--usd", "--days") and cluster is None:
        raise FroudeError(f"{given[0]}: needs --cluster, such as h100-sxm:1024")
    fitted = load(law or (DEFAULT_REPEATED if unique_tokens else DEFAULT_LAW))
    warnings = []
    if unique_tokens and "unique_tokens" not in fitted.law.columns():
        warnings.append(
            f"law {fitted.law.name!r} counts repeated tokens as if they were new; data-constrained does not"
        )

    def split(budget: float) -> Allocation:
        return allocate(fitted, budget, inference_tokens=inference_tokens, unique_tokens=unique_tokens)

    pace: Pace | None = None
    if target_loss is not None:
        found = least_flops(fitted, target_loss, inference_tokens=inference_tokens, unique_tokens=unique_tokens)
    elif flops is not None:
        found = split(flops)
    else:
        assert cluster is not None
        found, pace = _afford(split, cluster, usd, days)
    params, tokens = float(found.params[0]), float(found.tokens[0])
    lr_law, batch_law, critical_law = load("step-law"), load("step-law-batch"), load("critical-batch")
    batch, _ = batch_law.predict(tokens=tokens)
    critical, _ = critical_law.predict(tokens=tokens)  # where examples exceed the least by OVERHEAD
    rate, _ = lr_law.predict(params=params, tokens=tokens)
    if cluster is not None and pace is None:
        pace = measure_pace(cluster, params, batch.value)
    curve = time_to_target(pace, params, tokens, batch.value, critical.value) if pace else ()
    loss = _loss_estimate(fitted, found)
    choices = choose(params, tokens, float(architecture_of(params).hidden), loss)
    warnings += _warnings(fitted, found, unique_tokens)
    run = pace.run(params, tokens) if pace else None
    return BudgetPlan(
        law=fitted.law.name,
        params=_estimate(found.params),
        tokens=_estimate(found.tokens),
        epochs=_estimate(np.maximum(found.tokens / unique_tokens, 1.0) if unique_tokens else np.ones(1)),
        batch_tokens=batch,
        critical_batch_tokens=critical,
        learning_rate=rate,
        loss=loss,
        flops=_estimate(found.flops),
        training_flops=_estimate(found.training_flops),
        days=run.days if run else None,
        usd=run.usd if run else None,
        cluster=cluster,
        devices=pace.scenario.cluster.count if pace else None,
        choices=choices,
        fitted=fitted,
        unique_tokens=unique_tokens,
        target_points=curve,
        frontier=_frontier(split, float(found.flops[0])),
        warnings=(*warnings, *choices.warnings),
        assumptions=(
            fitted.provenance or f"{fitted.law.name} fitted to {fitted.n} rows",
            *fitted.notes,
            f"learning rate and batch: {lr_law.provenance}",
            f"critical batch: {critical_law.provenance}",
            *choices.assumptions,
            *(pace.assumptions if pace else ()),
        ),
    )


def _budgets(
    flops: float | None, usd: float | None, days: float | None, target_loss: float | None
) -> Sequence[tuple[str, float | None]]:
    return (("--flops", flops), ("--usd", usd), ("--days", days), ("--target-loss", target_loss))


def _afford(split: Split, cluster: str, usd: float | None, days: float | None) -> tuple[Allocation, Pace]:
    """The budget whose model trains for the given dollars or days: pace depends on size, and size on budget."""
    pace = measure_pace(cluster, 7e9, 4e6)
    found: Allocation | None = None
    for _ in range(ROUNDS):
        seconds = pace.seconds_for(usd) if usd is not None else (days or 0.0) * SECONDS_PER_DAY
        found = _for_training(split, pace.model_flops_per_s * seconds)
        batch, _ = load("step-law-batch").predict(tokens=float(found.tokens[0]))
        before, pace = pace, measure_pace(cluster, float(found.params[0]), batch.value)
        if abs(pace.model_flops_per_s / before.model_flops_per_s - 1.0) < CLOSE:
            break
    assert found is not None
    return found, pace


def _for_training(split: Split, training_flops: float) -> Allocation:
    """The lifetime budget whose training part is given: what inference adds depends on the size chosen."""
    lifetime = training_flops
    for _ in range(50):
        found = split(lifetime)
        share = float(found.training_flops[0]) / training_flops
        if abs(share - 1.0) < CLOSE / 10.0:
            break
        lifetime /= share
    return found


def _warnings(fitted: FittedLaw, found: Allocation, unique_tokens: float | None) -> list[str]:
    inputs = {"params": float(found.params[0]), "tokens": float(found.tokens[0]), "flops": float(found.flops[0])}
    inputs["unique_tokens"] = min(inputs["tokens"], unique_tokens or inputs["tokens"])
    said = fitted.extrapolations(inputs)
    if len(found.params) > 1:
        low, high = interval(found.params)
        if high / low > 2.0:
            said.append(f"the optimum is ill-determined: its 80% interval spans {low:.3g} to {high:.3g} parameters")
    return said


def _frontier(split: Split, flops: float) -> tuple[tuple[float, float, float], ...]:
    """Best split at budgets around this one."""
    points = []
    for budget in flops * np.geomspace(1e-3, 1e3, 13):
        found = split(float(budget))
        points.append((float(budget), float(found.params[0]), float(found.tokens[0])))
    return tuple(points)


def _loss_estimate(fitted: FittedLaw, found: Allocation) -> Estimate | None:
    """Uncertainty of the curve and scatter of a run."""
    if found.loss is None:
        return None
    noise = np.exp(fitted.residuals) if fitted.law.residual == "log" else fitted.residuals / found.loss[0] + 1.0
    return _estimate((found.loss[:, None] * noise[None, :]).reshape(-1), float(found.loss[0]))


def _estimate(draws: Floats, value: float | None = None) -> Estimate:
    """The first entry is the value, the others draws."""
    centre = float(draws[0]) if value is None else value
    return Estimate(centre, *interval(draws, centre))
