"""Laws fitted to public tables where no published figure stands to be reproduced: what they find must make sense."""

from __future__ import annotations

import numpy as np
import pytest

from froude.laws.check import groups, load, where
from froude.laws.fitting import fit
from froude.laws.library.loss_bowl import cell_least


@pytest.fixture(scope="module")
def grid(law_data):
    return load(law_data / "steplaw" / "dense_lr_bs_loss.csv", loss="smooth loss")


@pytest.fixture(scope="module")
def gadre(law_data):
    return load(law_data / "gadre_overtraining" / "models_loss.csv", loss="loss_c4_val")


def test_downstream_error_follows_loss(gadre, law_data) -> None:
    accuracy = load(law_data / "gadre_overtraining" / "downstream_acc.csv")
    tasks = [name for name in accuracy if name != "name"]
    mean = dict(zip(accuracy["name"], 1.0 - np.stack([accuracy[t] for t in tasks]).mean(axis=0), strict=True))
    rows = where(gadre, gadre["dataset"] == "rpj")
    table = {"loss": rows["loss"], "error": np.array([mean[name] for name in rows["name"]])}
    found = fit("downstream-error", table)
    assert np.abs(found.predicted - found.table["error"]).mean() < 0.006
    assert found.fitted.values()["epsilon"] == pytest.approx(0.76, abs=0.05)


def test_hestness_through_compute_optimal_minima(law_data) -> None:
    pairs = load(law_data / "porian_resolving" / "optimal_pairs.csv", tokens="t")
    tuned = where(pairs, (pairs["file"] == "summary_df") & (pairs["exp"] == 4))
    found = fit("hestness", tuned)
    assert found.r2 > 0.99 and 0.05 < found.fitted.values()["b"] < 0.6


def test_isoflop_minima_from_runs_agree_with_the_authors(law_data) -> None:
    runs = load(law_data / "porian_resolving" / "isoflop_points.csv")
    for number, published in ((0, 0.8353), (4, 0.4969)):
        one = where(runs, (runs["file"] == "summary_df") & (runs["exp"] == number))
        found = fit("isoflop", one)
        assert found.fitted.values()["a"] == pytest.approx(published, abs=0.06)
        assert "minima" in found.assumptions[0]


def test_learning_rate_laws_on_step_laws_grid(grid) -> None:
    best = where(grid, grid["loss"] == cell_least(grid))
    rate = fit("step-law", best).fitted.values()
    assert -1.2 < rate["a"] < -0.3 and 0.0 < rate["b"] < 0.6
    batch = fit("step-law-batch", best).fitted.values()
    assert 0.4 < batch["a"] < 0.8
    # At one batch, where Bjorck measured, the rate falls less with tokens than the optimum over batches rises.
    fixed = where(grid, grid["bs"] == 128)
    horizon = fit("token-horizon", where(fixed, fixed["loss"] == cell_least(fixed))).fitted.values()
    assert horizon["b"] < rate["b"]
    power = fit("power-scheduler", best).fitted.values()
    assert -0.9 < power["b"] < -0.1


def test_surge_the_best_rate_rises_with_batch(grid) -> None:
    largest = max(groups(where(grid, grid["params"] == grid["params"].min()), "tokens"), key=lambda item: item[0])[1]
    best = [where(rows, rows["loss"] == rows["loss"].min()) for _, rows in groups(largest, "bs")]
    table = {
        "batch": np.array([float(rows["bs"][0]) for rows in best]),
        "learning_rate": np.array([float(rows["learning_rate"][0]) for rows in best]),
    }
    found = fit("surge", table)
    assert found.fitted.values()["B_peak"] > 100 and found.r2 > 0.4


def test_finite_batch_finds_a_critical_batch(grid) -> None:
    # The best rate at each batch of each cell: steps and batch trade off along equal tokens.
    rows = [
        where(one, one["loss"] == one["loss"].min()) for _, cell in groups(grid, "D") for _, one in groups(cell, "bs")
    ]
    table = {name: np.concatenate([row[name] for row in rows]) for name in grid}
    found = fit("finite-batch", table, starts=100)
    assert found.r2 > 0.9 and 1e4 < found.fitted.values()["B_c"] < 1e8


def test_sparsity_law_on_released_routed_runs(law_data) -> None:
    path = law_data / "routed_moe_and_mixture" / "moe_scaling_law__data.csv"
    table = load(path, params="total_parameter_count", loss="loss_validation", experts="num_experts")
    last = (table["step"] >= 240_000) & (table["routing_frequency"] == 0.5) & (table["k"] == 1)
    rows = where(table, last & ((table["router_type"] == "S-Base") | (table["router_type"] == "Dense")))
    rows["active_share"] = rows["dense_parameter_count"] / rows["params"]
    rows["tokens"] = rows["step"] * 128.0 * 2048.0
    found = fit("moe-sparsity", rows, starts=60)
    assert found.r2 > 0.98


def test_bimix_on_two_domains(law_data) -> None:
    table = load(law_data / "mixing_laws" / "losses.csv.gz")
    two = where(table, (table["family"] == "2Mix") & (table["size"] == "70M") & (table["val_domain"] == "Github"))
    two["share"] = np.array([float(str(name).split("-")[1]) for name in two["mixture"]])
    two["steps"] = two["step"].astype(float)
    found = fit("bimix", two, starts=100)
    assert found.r2 > 0.97 and found.fitted.values()["alpha"] > 0


def test_rectified_law_beats_a_plain_power_law(law_data) -> None:
    table = load(law_data / "rectified_finetune" / "wmt19.csv")
    sizes = [name for name in table if name.isdigit() and name != "0"]
    better = 0
    for row in range(10):
        curve = {
            "examples": np.array(sizes, dtype=float),
            "loss": np.array([float(table[name][row]) for name in sizes]),
        }
        plain = fit("hestness", {"tokens": curve["examples"], "loss": curve["loss"]})
        rectified = fit("fine-tuning", curve, starts=60)
        errors = [np.sqrt(np.mean(np.log(f.predicted / curve["loss"]) ** 2)) for f in (rectified, plain)]
        better += errors[0] < 0.5 * errors[1]
    assert better >= 8
