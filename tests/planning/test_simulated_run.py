"""A run is an integral over its steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.laws.gradient_noise import examples_to_target
from froude.planning.run import NoiseScale, simulate_run
from froude.program.controller import Controller, GradientObservation, SetBatch
from froude.training.plan import TrainPlan
from froude.training.scenario import Scenario
from froude.training.step import predict

PLAN = TrainPlan.parse(
    {
        "model": "meta-llama/Llama-2-7b-hf",
        "cluster": "h100-sxm:8",
        "job": {"seq_len": 4096, "global_batch_tokens": 4096 * 16, "tokens": 1e10},
        "layout": {"data_parallel": 8, "zero_stage": 3, "recompute": "full"},
    }
)


class Double(Controller[GradientObservation, SetBatch]):
    """Twice the batch after so many steps."""

    name = "double"

    def __init__(self, at: int) -> None:
        self.at = at

    def observe(self, observation: GradientObservation) -> SetBatch:
        factor = 2 if observation.step == self.at else 1
        return SetBatch(observation.batch_sequences * factor)


def step_s(sequences: int) -> float:
    plan = PLAN.with_batch(sequences)
    return predict(Scenario.of(plan), [plan.layout])[0].step_s


def test_one_batch_takes_exactly_steps_times_step() -> None:
    run = simulate_run(PLAN, steps=1234)
    assert run.seconds.value == 1234 * step_s(16)
    assert run.tokens == 1234 * 16 * 4096
    assert len(run.segments) == 1


def test_two_batches_take_the_sum_of_their_own_times() -> None:
    run = simulate_run(PLAN, steps=30, controller=Double(10))
    assert [(s.steps, s.sequences) for s in run.segments] == [(10, 16), (20, 32)]
    assert run.seconds.value == 10 * step_s(16) + 20 * step_s(32)
    assert step_s(32) < 2 * step_s(16)


def test_a_controller_that_changes_nothing_changes_nothing() -> None:
    plain, watched = simulate_run(PLAN, steps=50), simulate_run(PLAN, steps=50, controller=Double(10**9))
    assert watched.seconds.value == plain.seconds.value
    assert watched.loss == pytest.approx(plain.loss, rel=1e-9)


def test_large_batches_need_fewer_steps_and_more_tokens_to_the_same_loss() -> None:
    small = simulate_run(PLAN, tokens=2e9)
    large = simulate_run(PLAN.with_batch(512), target_loss=small.loss)
    assert large.loss <= small.loss * (1 + 1e-9)
    assert large.steps < small.steps
    assert large.tokens > small.tokens


def test_constant_noise_is_the_hyperbola_of_mccandlish() -> None:
    noise, batch = NoiseScale(1e6, 0.0), 4096.0 * 256
    needed = noise.needed(1e9, batch)
    assert needed == pytest.approx(examples_to_target(1e9 / 1e6, 1e6, batch))


@given(st.floats(1e3, 1e7), st.floats(0.0, 0.8), st.floats(1e3, 1e8), st.floats(0, 1e10), st.integers(1, 50))
@settings(deadline=None)
def test_many_steps_at_once_teach_what_they_teach_one_by_one(
    coefficient: float, exponent: float, batch: float, before: float, steps: int
) -> None:
    noise = NoiseScale(coefficient, exponent)
    one_by_one = before
    for _ in range(steps):
        one_by_one = noise.learnt(one_by_one, batch, batch)
    at_once = noise.learnt(before, steps * batch, batch)
    assert at_once == pytest.approx(one_by_one, rel=1e-6)
    assert before <= at_once <= before + steps * batch


def test_between_knots_the_step_time_is_the_exact_one_nearly() -> None:
    from froude.planning.run import StepTimes

    times = StepTimes(PLAN, Scenario.of(PLAN))
    for rounds in (70, 91):
        assert times(8 * rounds) == pytest.approx(step_s(8 * rounds), rel=1e-3)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"steps": 5, "tokens": 1e9}, "give one of"),
        ({"steps": 0}, "steps: 0 must be positive"),
        ({"target_loss": 0.5}, "out of reach"),
        ({"target_loss": 1e9}, "before training begins"),
    ],
)
def test_unclear_ends_are_refused(kwargs: dict[str, float], said: str) -> None:
    with pytest.raises(FroudeError, match=said):
        simulate_run(PLAN, **kwargs)
