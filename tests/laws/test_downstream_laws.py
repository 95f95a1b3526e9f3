"""From loss, compute and samples to benchmark scores."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from froude.laws.fitting import fit
from froude.laws.law import LAWS
from froude.laws.library.clustered_downstream import map_to_all, scalable
from froude.laws.library.fine_tuning_cost import largest_batch
from froude.laws.library.idealized_runtime import idealized_cost
from froude.laws.library.loss_to_accuracy import score_chain
from froude.laws.library.optimal_transport import project, transport_distance
from froude.laws.library.question_coverage import QuestionCoverage, matched_samples, spend

SIZES = {"70m": 7e7, "160m": 1.6e8, "410m": 4.1e8, "1b": 1e9, "1.4b": 1.4e9, "2.8b": 2.8e9, "6.9b": 6.9e9, "12b": 12e9}


@pytest.fixture(scope="module")
def pythia(law_data) -> pl.DataFrame:
    table = pl.read_csv(law_data / "pythia_evals" / "evals_by_step.csv.gz", infer_schema_length=None)
    sizes = pl.DataFrame({"model": [f"pythia-{name}" for name in SIZES], "params": list(SIZES.values())})
    return table.filter(pl.col("shots") == "zero-shot").join(sizes, on="model").sort("params")


@pytest.mark.parametrize(("task", "chance"), [("arc_easy", 0.25), ("sciq", 0.25), ("lambada_openai", 0.0)])
def test_scores_of_large_models_from_small_ones(pythia: pl.DataFrame, task: str, chance: float) -> None:
    """Fitted on models up to 2.8B, the form predicts 6.9B and 12B within two and a half points."""
    last = pythia.filter((pl.col("task") == task) & (pl.col("step") == 143_000)).unique("model").sort("params")
    flops, accuracy = 6.0 * last["params"].to_numpy() * 3e11, last["acc"].to_numpy()
    small = last["params"].to_numpy() < 5e9
    table = {"flops": flops[small], "chance": np.full(small.sum(), chance), "accuracy": accuracy[small]}
    law = fit("clustered-downstream", table).fitted
    predicted = law.predict_arrays({"flops": flops[~small], "chance": np.full((~small).sum(), chance)})[0]
    np.testing.assert_allclose(predicted, accuracy[~small], atol=0.025)


def test_clusters_that_scale_and_the_way_back_to_all() -> None:
    rates = np.array([[0.1, 0.3, 0.5, 0.8], [0.0, 0.0, 0.0, 0.0], [0.4, 0.9, 0.3, 0.8], [0.2, 0.2, 0.4, 0.5]])
    assert scalable(rates).tolist() == [True, False, False, True]
    part = np.array([0.2, 0.4, 0.6])
    whole = part + 0.5 * part * (1 - part)
    assert map_to_all(part, whole, 0.8) == pytest.approx(0.8 + 0.5 * 0.16)
    assert map_to_all(part, whole, 0.0) == 0.0 and map_to_all(part, whole, 1.0) == 1.0


def test_loss_gives_accuracy_where_they_ask_the_same(pythia: pl.DataFrame) -> None:
    """LAMBADA scores the very word whose perplexity is known: checkpoints up to 2.8B predict 6.9B and 12B."""
    one = pythia.filter((pl.col("task") == "lambada_openai") & (pl.col("ppl") < 1e4) & (pl.col("step") >= 1000))
    loss, accuracy, large = np.log(one["ppl"].to_numpy()), one["acc"].to_numpy(), one["params"].to_numpy() > 5e9
    found = fit("loss-to-accuracy", {"loss": loss[~large], "accuracy": accuracy[~large]})
    predicted = found.fitted.predict_arrays({"loss": loss[large]})[0]
    assert np.abs(predicted - accuracy[large]).mean() < 0.02


def test_scores_lose_compute_along_the_chain() -> None:
    """Schaeffer et al.: wrong choices gain likelihood too, so that each step from loss to accuracy correlates less."""
    rng = np.random.default_rng(0)
    compute = np.linspace(0.0, 6.0, 20)
    questions, choices = 400, 4
    base = -8.0 + rng.standard_normal((questions, choices))
    gain = np.array([0.5, 0.4, 0.4, 0.4]) * (1.0 + 0.3 * rng.standard_normal((questions, choices)))
    scores = np.stack([base + c * gain + 0.4 * rng.standard_normal((questions, choices)) for c in compute])
    chain = score_chain(scores)

    def correlation(score: np.ndarray) -> float:
        each = [np.corrcoef(compute, score[:, q])[0, 1] if np.ptp(score[:, q]) else 0.0 for q in range(questions)]
        return float(np.mean(np.abs(each)))

    kept = [correlation(score) for score in chain.values()]
    assert kept[0] > 0.8 > kept[2] > kept[3] and kept == sorted(kept, reverse=True)


def test_coverage_of_questions_of_mixed_difficulty() -> None:
    rng = np.random.default_rng(0)
    chances = rng.beta(0.4, 3.0, 200_000)
    samples = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    solved = np.array([1.0 - np.mean((1.0 - chances) ** k) for k in samples])
    law = QuestionCoverage()
    np.testing.assert_allclose(law.predict({"samples": samples}, {"a": 0.4, "b": 3.0}), solved, atol=4e-3)
    # What stays unsolved is a power of the samples, of exponent a.
    many = np.array([1e3, 1e5])
    unsolved = 1.0 - law.predict({"samples": many}, {"a": 0.4, "b": 3.0})
    assert np.diff(np.log(unsolved))[0] / np.log(100.0) == pytest.approx(-0.4, abs=0.01)


def test_samples_by_difficulty_save_compute() -> None:
    """Knowing how hard questions are saves a third of parallel samples; Snell et al.'s fourfold also takes revision."""
    chances = np.random.default_rng(0).beta(0.6, 1.5, 300)

    def solved(given: np.ndarray) -> float:
        return float(np.mean(1.0 - (1.0 - chances) ** given))

    budget = 16
    equal = solved(np.full(300, budget))
    needed = next(each for each in range(1, budget + 1) if solved(spend(chances, each * 300)) >= equal)
    assert 1.3 < budget / needed <= 4.0
    assert spend(chances, 3000).sum() == 3000


def test_small_models_with_samples_against_large_ones() -> None:
    """Section 7: a 14 times larger model; little inference leaves room for many samples, much for few."""
    assert matched_samples(14.0, 1.0, 1e9) == pytest.approx(14.0)
    assert matched_samples(14.0, 1.0, 1.0) == pytest.approx(14.0 + 3.0 * 13.0)


def test_fine_tuning_fits_larger_batches_with_fewer_experts() -> None:
    dense = largest_batch(48e9, 24e9, 128, 1.0, 2e-8, 0.9)
    sparse = largest_batch(48e9, 24e9, 128, 0.25, 2e-8, 0.9)
    assert sparse > 2 * dense > 0
    law = LAWS.get("fine-tuning-cost")()
    values = {"c_2": 0.5, "c_3": 0.6, "c_4": 0.4}
    speed = law.predict({"batch": np.array([1.0, 2.0, 4.0, 8.0]), "active_share": 1.0}, values)
    assert np.ptp(np.diff(speed)) < 1e-12 and speed[0] == pytest.approx(0.4)


def test_score_falls_with_the_distance_of_a_mixture() -> None:
    """A line through a few mixtures of a source like the task and one unlike it predicts the rest, at more data too."""
    rng = np.random.default_rng(0)
    task = rng.standard_normal((150, 3))
    away = np.array([1.5, 0.0, 0.0])

    def mixture(share: float, count: int) -> np.ndarray:
        return rng.standard_normal((count, 3)) + away * (rng.random(count) < share)[:, None]

    def score(share: float, count: int) -> float:
        """Of the mean of the data as an estimate of the task's: nearer is better."""
        errors = [np.linalg.norm(mixture(share, count).mean(axis=0)) for _ in range(200)]
        return 1.0 - 0.2 * float(np.mean(errors))

    shares = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    far = np.array([transport_distance(mixture(share, 150), task) for share in shares])
    assert (np.diff(far) > 0).all()
    rows = [(d, n, score(s, n)) for n in (40, 80) for s, d in zip(shares, far, strict=True)]
    columns = np.array(rows, dtype=float).T
    found = fit("optimal-transport", dict(zip(("distance", "examples", "score"), columns, strict=True)))
    assert found.r2 > 0.94
    middle = transport_distance(mixture(0.6, 150), task)
    small, large = (found.fitted.predict(distance=middle, examples=n)[0].value for n in (40.0, 80.0))
    assert project(small, large, 40, 80, 320) == pytest.approx(score(0.6, 320), abs=0.02)
    assert project(small, large, 40, 80, 80) == pytest.approx(large)


def test_requests_alone_take_a_part_per_prompt_and_per_token(law_data) -> None:
    """Uncontended Llama 2 70B and BLOOM: from requests of fewer tokens, the longest within 10% in the median."""
    table = pl.read_csv(law_data.parent / "serve_measured.csv", infer_schema_length=None)
    alone = table.filter(pl.col("concurrency_or_rate").is_in(["c=1", "static batch=1"]))
    alone = alone.with_columns(pl.col("value").cast(pl.Float64, strict=False))
    keys = ["source", "model", "device", "tp", "engine", "isl", "osl"]
    wide = alone.filter(pl.col("metric").is_in(["ttft_ms", "tpot_ms"])).pivot(
        on="metric", index=keys, values="value", aggregate_function="median"
    )
    errors = []
    for _, rows in wide.drop_nulls(["ttft_ms", "tpot_ms"]).group_by(keys[:5]):
        if len(rows) < 8:
            continue
        prompt, output = (rows[name].cast(pl.Float64).to_numpy() for name in ("isl", "osl"))
        seconds = 1e-3 * (rows["ttft_ms"].to_numpy() + rows["tpot_ms"].to_numpy() * (output - 1.0))
        short = np.argsort(prompt + output)[: int(0.75 * len(rows))]
        made = {"prompt_tokens": prompt[short], "output_tokens": output[short], "time_s": seconds[short]}
        law = fit("idealized-runtime", made, starts=40).fitted
        predicted = law.predict_arrays({"prompt_tokens": prompt, "output_tokens": output})[0]
        long = np.setdiff1d(np.arange(len(rows)), short)
        errors += [*np.abs(predicted[long] / seconds[long] - 1.0)]
    assert len(errors) > 10 and np.median(errors) < 0.1
    assert idealized_cost(3600.0, 8, 2.0) == 16.0
