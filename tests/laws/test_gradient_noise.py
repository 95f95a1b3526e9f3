from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.laws import gradient_noise as gns


def test_two_batches_and_examples_agree_with_the_truth() -> None:
    rng = np.random.default_rng(0)
    mean, sigma, parameters = 0.05, 1.0, 200
    truth = parameters * sigma**2 / (parameters * mean**2)
    examples = mean + sigma * rng.standard_normal((20_000, parameters))
    assert gns.from_examples(examples).simple_noise_scale == pytest.approx(truth, rel=0.1)
    meter = gns.NoiseMeter(decay=0.99)
    assert meter.noise is None
    for part in examples[:19_200].reshape(300, 64, parameters):
        small = np.mean([(half.mean(axis=0) ** 2).sum() for half in part.reshape(8, 8, parameters)])
        meter.observe(float(small), float((part.mean(axis=0) ** 2).sum()), 8, 64)
    assert meter.noise is not None
    assert meter.noise.simple_noise_scale == pytest.approx(truth, rel=0.25)


@given(st.floats(1, 1e6), st.floats(1, 1e6), st.floats(1, 1e7))
def test_hyperbola(min_steps: float, critical: float, batch: float) -> None:
    steps = gns.steps_to_target(min_steps, critical, batch)
    examples = gns.examples_to_target(min_steps, critical, batch)
    assert examples == pytest.approx(steps * batch)
    least = min_steps * critical
    assert (steps / min_steps - 1) * (examples / least - 1) == pytest.approx(1.0, rel=1e-6)


def test_at_the_critical_batch_both_double() -> None:
    assert gns.steps_to_target(100, 32, 32) == 200
    assert gns.examples_to_target(100, 32, 32) == 2 * 100 * 32
    assert gns.efficiency(32, 32) == 0.5
    assert gns.best_learning_rate(0.3, 32, 32, 0.5) == pytest.approx(0.3 / 2**0.5)


def test_sgd_on_a_noisy_quadratic_needs_the_steps_that_the_noise_scale_says() -> None:
    # On an isotropic quadratic with noise of constant trace, the best step at every state gains efficiency(B_noise, B)
    # of a noiseless step: run it, count the steps at several batches, and fit the hyperbola.
    steps = {}
    for batch in (1, 4, 16, 64, 4096):
        loss, count = 1.0, 0
        while loss > 0.2:
            noise_scale = 4.0 / loss
            loss *= 1.0 - 0.05 * gns.efficiency(noise_scale, batch)
            count += 1
        steps[batch] = count
    inverse = np.array([1 / b for b in steps])
    slope, least = np.polyfit(inverse, np.array(list(steps.values()), float), 1)
    assert least == pytest.approx(steps[4096], rel=0.02)
    assert 4.0 < slope / least < 20.0  # between the noise scale at the start and at the end
    predicted = gns.steps_to_target(least, slope / least, 16)
    assert predicted == pytest.approx(steps[16], rel=0.03)


def test_the_knee_moves_with_step_time() -> None:
    batch = np.array([8.0, 16, 32, 64, 128, 256])
    flat = gns.fastest_batch(32, np.full(6, 1.0), batch)
    linear = gns.fastest_batch(32, batch / 8.0, batch)
    assert flat == 5 and linear == 0


def test_bad_batches() -> None:
    with pytest.raises(FroudeError, match="must be positive and below the big batch"):
        gns.from_two_batches(1.0, 1.0, 8, 8)
    assert gns.from_two_batches(1.0, 0.0, 1, 2).simple_noise_scale == float("inf")
