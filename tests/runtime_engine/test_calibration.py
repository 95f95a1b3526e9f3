"""The fit finds what made the times, in spite of disturbances; its time is what the simulator needs."""

from __future__ import annotations

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.runtime.engine.calibration import FittedIterationTime, Measured, fit_iteration_time

pytest.importorskip("torch")

from froude.runtime.engine.probe import compositions

TRUE = FittedIterationTime(3_000_000_000, 600_000_000, 180_000_000, 1_500_000, 400_000_000, 75_000_000, 110_000)


def measured(noise: float, disturbed: float, seed: int = 0) -> list[Measured]:
    rng = np.random.default_rng(seed)
    rows = []
    for composition in compositions(16, 256, 700, 8192, seed)[:120]:
        decoding, context = len(composition.decoding), sum(composition.decoding)
        seconds = TRUE.segment(decoding, context, composition.prompts)[0] / 1e12
        seconds *= np.exp(noise * rng.normal()) * (3.0 if rng.random() < disturbed else 1.0)
        rows.append(Measured(decoding, context, composition.prompts, seconds, seconds))
    return rows


def test_exact_times_give_the_exact_coefficients() -> None:
    fitted = fit_iteration_time(measured(0.0, 0.0))
    assert fitted.median_ape < 1e-6
    for name in FittedIterationTime.__slots__:
        assert getattr(fitted.time, name) == pytest.approx(getattr(TRUE, name), rel=1e-3)


def test_disturbances_raise_everything_alike() -> None:
    """One iteration in ten takes three times as long, of which twice as long counts: 10% more, and nothing bent."""
    fitted = fit_iteration_time(measured(0.05, 0.1)).time
    for decoding, context, prompts in ((1, 300, ()), (12, 5000, ()), (0, 0, ((256, 0),)), (6, 1800, ((128, 200),))):
        ratio = fitted.segment(decoding, context, prompts)[0] / TRUE.segment(decoding, context, prompts)[0]
        assert ratio == pytest.approx(1.1, abs=0.06)


def test_a_segment_is_what_its_iterations_add_up_to() -> None:
    decoding, context, prompts = 5, 1234, ((32, 64), (16, 0))
    first, slope, valid = TRUE.segment(decoding, context, prompts)
    for j in range(4):
        later = tuple((tokens, prefix + j * tokens) for tokens, prefix in prompts)
        assert TRUE.segment(decoding, context + j * decoding, later)[0] == first + j * slope
    assert valid > 1_000_000


def test_compositions_keep_to_the_limits() -> None:
    for composition in compositions(8, 128, 500, 2048):
        assert len(composition.decoding) + len(composition.prompts) <= 8 + 2
        assert sum(tokens for tokens, _ in composition.prompts) <= 128
        assert sum(composition.decoding) + sum(map(sum, composition.prompts)) <= 2048
        assert composition.decoding or composition.prompts


def test_too_few_iterations() -> None:
    with pytest.raises(FroudeError, match="too few"):
        fit_iteration_time(measured(0.0, 0.0)[:5])
