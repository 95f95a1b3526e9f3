"""Laws of learning rate, schedule and batch: published settings that they imply, and runs that obey them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from froude.core.errors import InvalidValueError
from froude.laws import batch_rules as rules
from froude.laws.check import groups, load
from froude.laws.fitting import fit
from froude.laws.law import LAWS
from froude.laws.library import compute_batch
from froude.laws.library.critical_batch import batch_at_overhead
from froude.laws.library.deepseek_rate import flops_per_token
from froude.laws.library.mup import transfer
from froude.laws.published import published
from froude.laws.schedules import areas, constant_cooldown, cosine, ladder_steps


@pytest.mark.parametrize(
    ("layers", "width", "rate", "batch"), [(30, 4096, 4.2e-4, 2304 * 4096), (95, 8192, 3.2e-4, 4608 * 4096)]
)
def test_deepseek_7b_and_67b(layers: int, width: int, rate: float, batch: float) -> None:
    """The laws give what the two models were trained with on 2T tokens, within the paper's flat optimum."""
    flops = flops_per_token(layers, width, 4096) * 2e12
    assert published(LAWS.get("deepseek-rate")).predict(flops=flops)[0].value == pytest.approx(rate, rel=0.04)
    assert published(LAWS.get("deepseek-batch")).predict(flops=flops)[0].value == pytest.approx(batch, rel=0.1)


def test_deepseek_divides_a_budget() -> None:
    """M* D* = C: published for tokens, 5.8316 C^0.4757."""
    law = published(LAWS.get("deepseek-allocation"))
    found = law.law.allocate(1e20, law.values())
    assert found["tokens"] == pytest.approx(5.8316 * 1e20**0.4757, rel=0.01)
    assert 6.0 * found["params"] * found["tokens"] == pytest.approx(1e20)


def test_exponents_of_shuai_add_up() -> None:
    assert pytest.approx(compute_batch.TOKEN_EXPONENT) == compute_batch.STEP_EXPONENT + compute_batch.BATCH_EXPONENT
    assert pytest.approx(1.0) == compute_batch.SIZE_EXPONENT + compute_batch.TOKEN_EXPONENT
    compute = np.geomspace(1e18, 1e22, 6)
    found = fit("compute-batch", {"flops": compute, "batch_tokens": 3e3 * compute**compute_batch.BATCH_EXPONENT})
    assert found.fitted.values()["a"] == pytest.approx(0.102)


def test_critical_batch_in_proportion_to_data_is_one_of_two_readings(law_data) -> None:
    """On Zhang's runs a square root of the data does better than proportion; both are there to be compared."""
    tokens, batch = [], []
    for _, rows in groups(load(law_data / "critical_batch_size_zhang" / "steps_to_target.csv"), "model"):
        values = fit("steps-batch", rows, starts=50).fitted.values()
        tokens.append(20e6 * float(rows["N_params_M"][0]))
        batch.append(512.0 * batch_at_overhead(values["S_min"], values["S_min"] * values["B_crit"]))
    table = {"tokens": np.array(tokens), "batch_tokens": np.array(batch)}
    power, linear = fit("critical-batch", table), fit("time-transfer", table)
    assert power.objective < 0.5 * linear.objective
    assert power.fitted.values()["a"] < 0.8


def test_two_groups_find_the_same_exponent_of_data() -> None:
    """Bergsma's critical batch is of another definition and size, and grows as Zhang's does."""
    zhang, bergsma = (published(LAWS.get("critical-batch"), name) for name in ("zhang-2024", "bergsma-2025"))
    growth = [law.predict(tokens=9e10)[0].value / law.predict(tokens=1e9)[0].value for law in (zhang, bergsma)]
    assert growth[0] == pytest.approx(growth[1], rel=0.05)


def test_samples_of_a_gan_are_fewest_at_the_critical_batch() -> None:
    law = LAWS.get("gan-batch")()
    batch = np.geomspace(60.0, 4000.0, 2001)
    steps = law.predict({"batch": batch}, {"S_min": 1000.0, "b_crit": 100.0})
    assert batch[int(np.argmin(steps * batch))] == pytest.approx(100.0, rel=0.01)
    assert (np.diff(steps) < 0).all()


def test_linear_rule_for_sgd() -> None:
    """Batch and rate times eight keep the path per example; the old rate lags behind."""

    def run(batch: int, rate: float, steps: int) -> float:
        rng = np.random.default_rng(0)
        w = np.full(200, 1.0)
        for _ in range(steps):
            w = w - rate * (w + rng.standard_normal(200) / np.sqrt(batch))
        return float((w**2).mean())

    reference = run(8, 0.002, 800)
    scaled, unscaled = run(64, rules.linear_rate(0.002, 8), 100), run(64, 0.002, 100)
    assert abs(np.log(scaled / reference)) < 0.1 * abs(np.log(unscaled / reference))


def test_workers_of_decentralised_sgd_stay_apart_at_any_total_batch() -> None:
    def simulate(workers: int, rate: float = 0.1, batch: int = 4, dimension: int = 50) -> tuple[float, float]:
        rng = np.random.default_rng(0)
        mix, w = rules.ring(workers), np.zeros((workers, dimension))
        apart, centre = [], []
        for step in range(1500):
            noise = rng.standard_normal((workers, dimension)) / np.sqrt(batch)
            w = mix @ (w - rate * noise - rate * 0.02 * w)
            if step > 300:
                mean = w.mean(axis=0)
                apart.append(float(((w - mean) ** 2).sum(axis=1).mean()))
                centre.append(float((mean**2).sum()))
        return float(np.mean(apart)), float(np.mean(centre))

    few, many = simulate(4), simulate(16)
    for workers, found in ((4, few), (16, many)):
        theory = rules.consensus_distance(0.1, 50.0, 4, rules.ring(workers))
        assert theory == pytest.approx(found[0], rel=0.1)
    assert many[0] > few[0] and many[1] < 0.5 * few[1]  # sharpness stays avoided, noise of the mean fades


def test_mup_keeps_the_change_of_outputs_whatever_the_width() -> None:
    """One step of Adam (signs, at first) on hidden weights changes the layer's output by width times the rate."""
    rng = np.random.default_rng(0)

    def change(width: int, rate: float) -> float:
        h = rng.standard_normal((8, width))
        step = rate * np.sign(h.T @ rng.standard_normal((8, width)))
        return float(np.abs(h @ step).mean())

    widths = np.array([64, 256, 1024])
    standard = np.array([change(w, 1e-3) for w in widths])
    scaled = np.array([change(w, 1e-3 * transfer(w, 64, "hidden")["learning_rate"]) for w in widths])
    assert standard[2] / standard[0] == pytest.approx(16.0, rel=0.2)
    assert scaled.max() / scaled.min() < 1.2
    same = 1e-3 * standard[0] / standard  # the rates that keep the change, in the standard parametrisation
    found = fit("mup", {"width": widths.astype(float), "learning_rate": same})
    assert found.fitted.values()["a"] == pytest.approx(-1.0, abs=0.08)
    assert transfer(4096, 256, "hidden")["init_deviation"] == 0.25
    assert transfer(4096, 256, "output")["multiplier"] == 1 / 16
    with pytest.raises(InvalidValueError):
        transfer(0, 256, "input")


def sgd_losses(rates: np.ndarray, noise: float) -> np.ndarray:
    """Expected loss along SGD with a schedule on power-law features, mode by mode."""
    spectrum = np.arange(1, 401.0) ** -1.3
    error, losses = np.ones(400), []
    for rate in rates:
        error = (1 - rate * spectrum) ** 2 * error + rate**2 * spectrum * noise
        losses.append(float(spectrum @ error))
    return np.array(losses)


def test_annealing_law_predicts_a_schedule_never_run() -> None:
    """Fitted to a constant rate and a cosine, it predicts the loss at the end of a cooldown."""
    steps, peak, noise, forgetting = 4000, 0.3, 0.3, 0.99
    schedules = {
        "constant": constant_cooldown(steps, peak, cooldown=0.0),
        "cosine": cosine(steps, peak, floor=0.0),
        "cooldown": constant_cooldown(steps, peak),
    }
    losses = {name: 1.0 + sgd_losses(rates, noise) for name, rates in schedules.items()}
    ends = {name: loss[-1] for name, loss in losses.items()}
    assert ends["cooldown"] < ends["constant"] and ends["cosine"] < ends["constant"]
    at = np.arange(200, steps, 50)
    columns: dict[str, list[np.ndarray]] = {"rate_area": [], "annealing_area": [], "loss": []}
    for name in ("constant", "cosine"):
        area, annealed = areas(schedules[name], forgetting)
        for column, values in (("rate_area", area), ("annealing_area", annealed), ("loss", losses[name])):
            columns[column].append(values[at])
    found = fit("annealing", {name: np.concatenate(parts) for name, parts in columns.items()})
    area, annealed = areas(schedules["cooldown"], forgetting)
    predicted = found.fitted.predict(rate_area=area[-1], annealing_area=annealed[-1])[0].value
    assert predicted == pytest.approx(ends["cooldown"], rel=0.02)


def test_a_cooldown_recovers_what_a_cosine_gains() -> None:
    """Haegele et al., each schedule at its best peak: nearly the cosine's loss, at about half its peak."""

    def best(schedule: Callable[[float], np.ndarray]) -> tuple[float, float]:
        peaks = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
        losses = [sgd_losses(schedule(peak), 0.3)[-1] for peak in peaks]
        return min(zip(losses, peaks, strict=True))

    constant, _ = best(lambda peak: constant_cooldown(3000, peak, cooldown=0.0))
    cooled, cooled_peak = best(lambda peak: constant_cooldown(3000, peak))
    waved, waved_peak = best(lambda peak: cosine(3000, peak, floor=0.0))
    assert (constant - cooled) / (constant - waved) > 0.8
    assert 0.25 <= cooled_peak / waved_peak <= 0.75


def test_one_constant_run_serves_a_ladder_of_budgets() -> None:
    """Haegele et al.: scaling laws for half the compute or less. Eight lengths, a fifth of each spent cooling down."""
    cosines, shared = ladder_steps([1000 * n for n in range(1, 9)])
    assert shared < 0.5 * cosines
    assert ladder_steps([1000]) == (1000, 1000)


def test_schedules_have_their_shape() -> None:
    rates = constant_cooldown(1000, 1e-3, warmup_steps=100)
    assert rates[0] == pytest.approx(1e-5) and (rates[100:800] == 1e-3).all() and rates[-1] == 0.0
    assert rates[849] == pytest.approx(1e-3 * (1 - np.sqrt(0.25)))
    assert cosine(1000, 1e-3)[-1] == pytest.approx(1e-4)
    area, annealed = areas(np.full(10, 0.1))
    assert area[-1] == pytest.approx(1.0) and not annealed.any()
    with pytest.raises(InvalidValueError, match="cooldown"):
        constant_cooldown(10, 1.0, cooldown=1.5)
