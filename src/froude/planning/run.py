"""A training run as an integral: law, gradient noise, batch controller and step time together, along the run.

A batch of B tokens teaches as much as B / (1 + B / B_noise) tokens in small batches would (McCandlish et al., 2018, An
Empirical Model of Large-Batch Training, arXiv:1812.06162), the noise scale grows as the model learns, and a step takes
what it takes at its batch. So time is the sum over steps of their own times; with one batch throughout, steps times
step time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from scipy.optimize import brentq

from froude.core.errors import FroudeError, InvalidValueError
from froude.core.estimate import Estimate
from froude.laws.api import load
from froude.laws.fitted import FittedLaw
from froude.laws.library.critical_batch import OVERHEAD
from froude.program.controller import GradientObservation
from froude.training.accuracy import step_spread
from froude.training.controller import BatchController
from froude.training.plan import TrainPlan
from froude.training.scenario import Scenario
from froude.training.step import predict

EXACT_MICRO_BATCHES = 16
KNOT_RATIO = 1.5
MOST_MICRO_BATCHES = 1 << 24


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise scale as the model learns: ``coefficient * tokens ** exponent``, in tokens.

    ``tokens`` are effective ones: as many as small batches would have needed to get as far.
    """

    coefficient: float
    exponent: float

    @classmethod
    def published(cls) -> NoiseScale:
        """Of `critical-batch`: the batch that needs a fifth more data than small ones is a fifth of the noise scale."""
        values = load("critical-batch").values()
        return cls(values["k"] / OVERHEAD, values["a"])

    def at(self, learnt: float) -> float:
        """Noise scale in tokens after ``learnt`` effective tokens."""
        return self.coefficient * math.pow(learnt, self.exponent)

    def needed(self, learnt: float, batch_tokens: float) -> float:
        """Tokens that get from nothing to ``learnt`` in batches of that size: the integral of 1 + B / B_noise."""
        rest = 1.0 - self.exponent
        return learnt + batch_tokens / (self.coefficient * rest) * math.pow(learnt, rest)

    def learnt(self, before: float, tokens: float, batch_tokens: float) -> float:
        """Effective tokens after ``tokens`` more in batches of that size."""
        target = self.needed(before, batch_tokens) + tokens

        def short(learnt: float) -> float:
            return self.needed(learnt, batch_tokens) - target

        # Every token teaches at most one token's worth.
        return float(brentq(short, before, before + tokens, xtol=1e-12 * (before + tokens), rtol=1e-14))


@dataclass(frozen=True)
class Segment:
    """Consecutive steps at one batch; ``tokens`` and ``loss`` are reached at its end."""

    steps: int
    sequences: int
    step_s: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class SimulatedRun:
    """What a run takes.

    Attributes:
        segments: stretches of constant batch, in order.
        effective_tokens: what the tokens taught, in tokens of small batches.
        assumptions: what it rests on.
    """

    segments: tuple[Segment, ...]
    effective_tokens: float
    spread: tuple[float, str]
    assumptions: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return sum(segment.steps for segment in self.segments)

    @property
    def seconds(self) -> Estimate:
        """Duration, without failures: every step counts for its own time."""
        return Estimate.relative(sum(s.steps * s.step_s for s in self.segments), *self.spread)

    @property
    def tokens(self) -> float:
        """Tokens seen."""
        return self.segments[-1].tokens

    @property
    def loss(self) -> float:
        """Loss at the end."""
        return self.segments[-1].loss

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "effective_tokens": self.effective_tokens,
            "loss": self.loss,
            "segments": [vars(segment) for segment in self.segments],
        }


class StepTimes:
    """Seconds per step against the global batch, from the predicted step of the plan's layout.

    Once a pipeline is full only selected counts of micro-batches are evaluated: one more then adds one more of the same
    passes, so the time between two counts is a straight line.
    """

    def __init__(self, plan: TrainPlan, scenario: Scenario) -> None:
        self.plan, self.scenario = plan, scenario
        self.unit: int = plan.whole_batch(1)
        self.known: dict[int, float] = {}
        exact = max(EXACT_MICRO_BATCHES, 2 * plan.layout.pipeline_parallel)
        knots: set[int] = {*range(1, exact + 1), plan.job.global_batch_sequences // self.unit}
        value = 1.0 * exact
        while value < MOST_MICRO_BATCHES:
            value *= KNOT_RATIO
            knots.add(int(value))
        self.knots: list[int] = sorted(knots)

    def __call__(self, sequences: int) -> float:
        """Seconds of a step of that many sequences, a multiple of what the layout divides."""
        rounds = sequences // self.unit
        at = bisect_right(self.knots, rounds) - 1
        low = self.knots[at]
        if low == rounds or at + 1 == len(self.knots):
            return self._exact(rounds)
        high = self.knots[at + 1]
        share = (rounds - low) / (high - low)
        shorter, longer = self._exact(low), self._exact(high)
        return shorter + share * (longer - shorter)

    def _exact(self, rounds: int) -> float:
        if rounds not in self.known:
            plan = self.plan.with_batch(rounds * self.unit)
            scenario = Scenario(
                self.scenario.architecture,
                self.scenario.cluster,
                plan.job,
                self.scenario.stack,
                self.scenario.techniques,
            )
            self.known[rounds] = predict(scenario, [plan.layout])[0].step_s
        return self.known[rounds]


def simulate_run(
    plan: TrainPlan,
    *,
    controller: BatchController | None = None,
    steps: int | None = None,
    tokens: float | None = None,
    target_loss: float | None = None,
    law: str = "besiroglu",
    noise: NoiseScale | None = None,
) -> SimulatedRun:
    """Simulate a whole training run of a plan, with its batch or with a controller that changes it.

    Args:
        plan: model, machines, layout, and the batch to begin with.
        controller: asked after the steps it names; None keeps the plan's batch.
        steps, tokens, target_loss: when to stop; the plan's own tokens if none is given.
        law: loss from parameters and tokens: a law's name, ``NAME/SET`` or a fitted file.
        noise: gradient noise along the run; the published one unless given.

    Raises:
        FroudeError: when the end is not clear or cannot be reached, or the plan is impossible.
    """
    goals = [goal for goal in (steps, tokens, target_loss) if goal is not None]
    if len(goals) > 1:
        raise FroudeError("simulate_run: give one of steps, tokens and target_loss")
    if not goals:
        tokens = plan.job.tokens
        if tokens is None:
            raise FroudeError("tokens: the plan names none; give steps, tokens or target_loss")
    for name, goal in (("steps", steps), ("tokens", tokens), ("target_loss", target_loss)):
        if goal is not None and not goal > 0:
            raise InvalidValueError(name, goal, "must be positive")
    scenario = Scenario.of(plan)
    fitted, noise = load(law), noise or NoiseScale.published()
    params = float(scenario.architecture.parameters)
    enough = None if target_loss is None else _tokens_for(fitted, params, target_loss)
    times = StepTimes(plan, scenario)
    batch, done, seen, learnt = plan.job.global_batch_sequences, 0, 0.0, 0.0
    segments: list[Segment] = []
    while True:
        batch_tokens = float(batch * plan.job.seq_len)
        left = _steps_left(steps, tokens, enough, done, seen, learnt, batch_tokens, noise)
        if left <= 0:
            break
        count = left if controller is None else min(left, controller.next_change_step(done) - done)
        learnt = noise.learnt(learnt, count * batch_tokens, batch_tokens)
        done, seen = done + count, seen + count * batch_tokens
        segment = Segment(count, batch, times(batch), seen, _loss(fitted, params, learnt))
        if segments and segments[-1].sequences == batch:
            segment = Segment(segments.pop().steps + count, batch, segment.step_s, seen, segment.loss)
        segments.append(segment)
        if controller is not None:
            batch = plan.whole_batch(controller.observe(_observed(done, batch, noise, learnt, plan)).sequences)
    return SimulatedRun(
        tuple(segments),
        learnt,
        step_spread(scenario),
        (
            f"loss: {fitted.provenance}, in effective tokens (tokens that small batches would have needed)",
            f"gradient noise scale {noise.coefficient:.4g} x tokens^{noise.exponent:g}",
            "the learning rate is tuned to the batch throughout",
            "no failures, checkpoints or restarts",
        ),
    )


def _steps_left(
    steps: int | None,
    tokens: float | None,
    enough: float | None,
    done: int,
    seen: float,
    learnt: float,
    batch_tokens: float,
    noise: NoiseScale,
) -> int:
    """Steps at this batch until the run ends."""
    if steps is not None:
        return steps - done
    if tokens is not None:
        return math.ceil((tokens - seen) / batch_tokens)
    assert enough is not None
    missing = noise.needed(enough, batch_tokens) - noise.needed(learnt, batch_tokens)
    # A hair's breadth short of the target after the last step is there.
    return math.ceil(missing / batch_tokens - 1e-9) if learnt < enough * (1.0 - 1e-12) else 0


def _observed(done: int, batch: int, noise: NoiseScale, learnt: float, plan: TrainPlan) -> GradientObservation:
    """What the gradients of a step look like, in units of the true gradient's squared norm.

    The squared norm of a mean over b samples exceeds the true one by the variance over b (McCandlish, appendix A.1).
    """
    variance = noise.at(learnt) / plan.job.seq_len
    return GradientObservation(done, batch, 1.0 + variance / batch, variance)


def _loss(law: FittedLaw, params: float, tokens: float) -> float:
    centre, _, _ = law.predict_arrays({"params": params, "tokens": tokens})
    return float(centre[0])


def _tokens_for(law: FittedLaw, params: float, target: float) -> float:
    """Effective tokens to a loss.

    Raises:
        InvalidValueError: when no amount of data gets a model of that size there.
    """
    most = 1e18
    best = _loss(law, params, most)
    if target <= best:
        raise InvalidValueError("target_loss", target, f"is out of reach of this model, whose limit is {best:.4g}")
    if _loss(law, params, 1.0) <= target:
        raise InvalidValueError("target_loss", target, "is reached before training begins")
    exponent = brentq(lambda x: _loss(law, params, math.exp(x)) - target, 0.0, math.log(most), xtol=1e-12)
    return math.exp(float(exponent))
