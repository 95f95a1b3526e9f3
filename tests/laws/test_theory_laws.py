"""Solvable models: each summary law against the model it sums up, solved or simulated."""

from __future__ import annotations

import numpy as np
import pytest

from froude.laws.fitting import fit
from froude.laws.law import LAWS
from froude.laws.library import data_pruning, dynamical, four_phases, solvable
from froude.laws.library.learning_curve import unseen_mass
from froude.laws.library.manifold import SMOOTHNESS
from froude.laws.sgd_features import learning_curve


def slope(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def test_solution_of_random_features_is_what_regression_does() -> None:
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, 301.0) ** -1.5
    for features, samples in ((60, 200), (200, 60)):
        losses = []
        for _ in range(30):
            x = rng.standard_normal((samples, 300)) * np.sqrt(spectrum)
            project = rng.standard_normal((features, 300)) / np.sqrt(features)
            w = rng.standard_normal(300)
            seen = x @ project.T
            fitted = seen.T @ np.linalg.solve(seen @ seen.T + 1e-2 * np.eye(samples), x @ w)
            losses.append(float(spectrum @ (w - project.T @ fitted) ** 2))
        theory = solvable.expected_loss(spectrum, features, samples, 1e-2)
        assert theory == pytest.approx(np.mean(losses), rel=0.1)


def test_the_scarcer_of_features_and_samples_decides() -> None:
    """Maloney: the exponent of either is that of the spectrum less one, and both count alike."""
    spectrum = np.arange(1, 40_001.0) ** -1.5
    sizes = np.array([50, 100, 200, 400])
    by_size = np.array([solvable.expected_loss(spectrum, n, 20_000) for n in sizes])
    by_data = np.array([solvable.expected_loss(spectrum, 20_000, n) for n in sizes])
    assert slope(sizes, by_size) == pytest.approx(-0.5, abs=0.06)
    np.testing.assert_allclose(by_size, by_data, rtol=0.05)
    finite = np.arange(1, 1001.0) ** -1.5
    assert solvable.expected_loss(finite, 5000, 5000) < 0.01 * solvable.expected_loss(finite, 500, 5000)


def test_time_and_size_have_different_exponents() -> None:
    """Bordelon: modes of eigenvalue k^-b and target power k^-a lose exp(-2 k^-b t): (a - 1) / b in time."""
    k = np.arange(1, 200_001.0)
    a, b = 1.5, 1.2
    times = np.geomspace(30, 3000, 8)
    loss = np.array([float((k**-a) @ np.exp(-2.0 * k**-b * t)) for t in times])
    in_time, in_size = dynamical.exponents(a, b)
    assert slope(times, loss) == pytest.approx(-in_time, rel=0.1) and float(in_size) == pytest.approx(0.5)
    # What N random features cannot express, by the solved model: the spectrum's b with the target's a.
    exponent, growth = dynamical.compute_exponents(a, b)
    assert growth < 0.5  # training lengthens faster than models grow
    assert exponent == pytest.approx((a - 1) * min(a - 1, 2 * b) / (a - 1 + b * min(a - 1, 2 * b)))


@pytest.mark.parametrize(("alpha", "beta", "name"), [(0.8, 0.3, "Ia"), (1.2, 0.8, "II"), (0.8, 1.2, "III")])
def test_phases_balance_their_own_terms(alpha: float, beta: float, name: str) -> None:
    """The minimum over sizes of the four terms grows with compute as the published exponents of the phase say."""
    assert four_phases.phase(alpha, beta) == name
    law = LAWS.get("four-phases")()
    values = {"A": 1.0, "B": 1.0, "G": 1.0, "C": 1.0, "alpha": alpha, "beta": beta}
    compute = np.geomspace(1e12, 1e20, 9)
    sizes = np.geomspace(1e1, 1e15, 30_001)
    best, least = [], []
    for flops in compute:
        steps = flops / sizes
        loss = np.where(steps > 1, law.predict({"params": sizes, "steps": steps}, values), np.inf)
        best.append(sizes[int(np.argmin(loss))])
        least.append(loss.min())
    assert slope(compute, np.array(best)) == pytest.approx(four_phases.optimal_size_exponent(alpha, beta), abs=0.04)
    assert slope(compute, np.array(least)) == pytest.approx(-four_phases.loss_exponent(alpha, beta), abs=0.04)


def test_pure_term_is_that_of_sgd_on_power_law_features() -> None:
    alpha, beta = 0.9, 0.4
    j = np.arange(1, 5001.0)
    rate = 0.02 / (j ** (-2 * alpha)).sum()
    losses = learning_curve(j ** (-2 * alpha), j**-beta, rate, 64, 4000)
    steps = np.unique(np.geomspace(400, 4000, 12).astype(int))
    pure, *_ = four_phases.exponents(alpha, beta)
    assert slope(steps.astype(float), losses[steps]) == pytest.approx(-float(pure), abs=0.1)


def test_four_over_the_dimension() -> None:
    """Piecewise linear interpolation of a smooth function on a line: squared error falls as n^-4."""
    counts = np.array([10, 20, 40, 80])
    fine = np.linspace(0, 1, 20_001)
    errors = [
        float(np.mean((np.interp(fine, grid := np.linspace(0, 1, n + 1), np.sin(5 * grid)) - np.sin(5 * fine)) ** 2))
        for n in counts
    ]
    assert slope(counts.astype(float), np.array(errors)) == pytest.approx(-SMOOTHNESS, abs=0.05)
    law = LAWS.get("manifold")()
    values = {"E": 0.0, "A": 1.0, "B": 0.0, "d": SMOOTHNESS / 0.076}  # Kaplan's exponent of parameters
    sizes = np.geomspace(1e6, 1e9, 5)
    assert slope(sizes, law.predict({"params": sizes, "tokens": 1e10}, values)) == pytest.approx(-0.076)


def test_quanta_and_learning_curves_from_zipf() -> None:
    """Quantum k is used as k^-(1 + alpha): n leave n^-alpha, D examples show D^(1 / (1 + alpha))."""
    alpha = 0.5
    use = np.arange(1, 10**6 + 1.0) ** -(1 + alpha)
    use /= use.sum()
    held = np.array([30, 100, 300, 1000])
    tail = np.array([use[n:].sum() for n in held])
    assert slope(held.astype(float), tail) == pytest.approx(-alpha, abs=0.05)
    examples = np.array([100, 1000, 10_000])
    missed = np.array([unseen_mass(use, n) for n in examples])
    assert slope(examples.astype(float), missed) == pytest.approx(-alpha / (1 + alpha), abs=0.02)
    found = fit("learning-curve", {"examples": examples.astype(float), "error": missed})
    assert found.fitted.values()["alpha"] == pytest.approx(alpha, abs=0.06)
    rng = np.random.default_rng(0)
    draws = rng.choice(len(use), size=10_000, p=use)
    assert 1.0 - use[np.unique(draws)].sum() == pytest.approx(missed[-1], rel=0.1)


def test_associative_memory_forgets_what_it_never_saw() -> None:
    """Data side of the law: with frequencies k^-alpha, T examples leave T^(1/alpha - 1) of the mass unseen."""
    alpha = 1.8
    use = np.arange(1, 10**6 + 1.0) ** -alpha
    use /= use.sum()
    examples = np.array([100, 1000, 10_000, 100_000])
    missed = np.array([unseen_mass(use, n) for n in examples])
    law = LAWS.get("associative-memory")()
    errors = law.predict({"dimension": 1e30, "examples": examples}, {"a": 1e-9, "b": 1.0, "alpha": alpha})
    assert slope(examples.astype(float), errors) == pytest.approx(slope(examples.astype(float), missed), abs=0.02)


def perceptron(examples: int, kept: int, dimension: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    teacher = rng.standard_normal(dimension) / np.sqrt(dimension)
    x = rng.standard_normal((examples, dimension))
    field = x @ teacher
    x = (x * np.sign(field)[:, None])[np.argsort(np.abs(field))[:kept]]
    student = x.sum(axis=0)
    for _ in range(3000):  # min-over: tends to the widest margin
        student = student + x[int(np.argmin(x @ student))]
    return float(np.arccos(student @ teacher / np.linalg.norm(student) / np.linalg.norm(teacher)) / np.pi)


def test_pruning_beats_the_power_law() -> None:
    error = data_pruning.perceptron_error
    for ratio, share in ((1.0, 1.0), (2.0, 0.5), (1.0, 0.2)):
        simulated = np.mean([perceptron(int(100 * ratio / share), int(100 * ratio), 100, seed) for seed in range(4)])
        assert error(ratio, share) == pytest.approx(simulated, rel=0.12)
    # Everything kept: half over examples per parameter, a power law. The hardest tenth: far faster than any.
    assert error(100.0, 1.0) * 100.0 == pytest.approx(0.5, abs=0.02)
    assert error(4.0, 0.1) < 0.2 * error(2.0, 0.1) and error(4.0, 1.0) > 0.5 * error(2.0, 1.0)
    # Few data want easy examples; of many, a tenth is enough.
    assert error(0.5, 0.1) > error(0.5, 1.0)
    assert data_pruning.smallest_share(64.0) < 0.15 < 0.5 < data_pruning.smallest_share(2.0)
