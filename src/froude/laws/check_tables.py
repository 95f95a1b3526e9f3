"""One function per public table of runs: which law it tests, and which published figures come out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from froude.core.arrays import Floats
from froude.laws.check import LawCheck, Regret, Rows, groups, load, where
from froude.laws.fitting import fit, objective_at, spearman
from froude.laws.law import LAWS
from froude.laws.library.besiroglu import LEAST_TOKENS_PER_PARAM
from froude.laws.library.critical_batch import batch_at_overhead
from froude.laws.library.loss_bowl import LossBowl, cell_least
from froude.laws.library.mixing import PREFIX
from froude.laws.library.regmix import boosted, shares
from froude.laws.library.vocabulary import best_vocabulary
from froude.laws.published import published

GOPHER_FLOPS = 5.76e23
ZHANG_SIZES = 5
FOLDS = 5  # of mixtures, each predicted from the others


def hoffmann_points(path: Path, result: LawCheck) -> None:
    """Hoffmann's 245 runs, as Besiroglu read them."""
    table = load(path)
    refit, all_points = fit("besiroglu", table), fit("hoffmann", table)
    for name, value in refit.fitted.values().items():
        result.add("besiroglu", name, value)
    result.add("besiroglu", "objective", refit.objective)
    split = refit.law.allocate(GOPHER_FLOPS, refit.fitted.values())
    result.add("besiroglu", "params at 5.76e23 FLOP", float(split["params"]))
    for name, value in all_points.fitted.values().items():
        result.add("hoffmann", name, value)
    clean = where(table, table["tokens"] / table["params"] >= LEAST_TOKENS_PER_PARAM)
    for law in ("besiroglu", "kaplan", "compute-only"):
        result.hold_out("hoffmann points", law, clean)


def datablations(path: Path, result: LawCheck) -> None:
    """Muennighoff's 182 runs with repeated data."""
    table = load(path)
    kind = LAWS.get("data-constrained")
    values = published(kind).values()
    result.add("data-constrained", "objective at published coefficients", objective_at(kind(), table, values))
    observed = table["loss"]
    predicted = kind().predict(table, values)
    r2 = 1.0 - float(((observed - predicted) ** 2).sum() / ((observed - observed.mean()) ** 2).sum())
    result.add("data-constrained", "R2 at published coefficients", r2)
    for law in ("data-constrained", "kaplan"):
        result.hold_out("datablations", law, table, cover=law == "kaplan")


PORIAN_STEPS = ("Kaplan reproduced", "last layer counted", "short warm-up", "cosine to the horizon", "tuned")
PORIAN_DATA = {"summary_df": "RefinedWeb", "summary_df_owt2": "OpenWebText2"}


def porian(path: Path, result: LawCheck) -> None:
    """Porian's chain of corrections: minima with their uncertainties."""
    for file, rows in groups(load(path, params="n"), "file"):
        for number, one in groups(rows, "exp"):
            if file in PORIAN_DATA and int(number) < len(PORIAN_STEPS):
                weighted = {**one, "weight": one["n_star_std"] ** -2.0}
                exponent = fit("porian", weighted, starts=20).fitted.values()["a"]
                result.add("porian", f"a, {PORIAN_DATA[file]}: {PORIAN_STEPS[int(number)]}", exponent)


def porian_runs(path: Path, result: LawCheck) -> None:
    """Porian's isoFLOP runs."""
    table = load(path)
    for number, one in groups(where(table, table["file"] == "summary_df"), "exp"):
        for law in ("hoffmann", "kaplan"):
            result.hold_out(f"porian isoFLOP {number}", law, one, cover=law == "hoffmann")


def gadre(path: Path, result: LawCheck) -> None:
    """Gadre's over-trained models: its own five-run fits, and all runs."""
    table = load(path, loss="loss_c4_val")
    for name, rows in groups(table, "dataset"):
        times = np.round(rows["chinchilla_multiplier"], 2)
        five = ((rows["params"] < 5e8) & (times == 1.0)) | ((rows["params"] < 2e7) & (times == 16.0))
        if five.sum() == 5:
            for symbol, value in fit("over-training", where(rows, five)).fitted.values().items():
                result.add("over-training", f"{symbol}, {name}", value)
        for law in ("hoffmann", "over-training"):
            result.hold_out(f"gadre {name}", law, rows)


def gemstone(path: Path, result: LawCheck) -> None:
    """Gemstones: widths and depths along training."""
    for name, rows in groups(load(path), "val"):
        result.hold_out(f"gemstone {name}", "hoffmann", rows)


def zhang(path: Path, result: LawCheck) -> None:
    """Zhang's steps to a target loss against batch."""
    sizes, critical = [], []
    for model, rows in groups(load(path), "model"):
        values = fit("steps-batch", rows, starts=50).fitted.values()
        batch = batch_at_overhead(values["S_min"], values["S_min"] * values["B_crit"])
        result.add("steps-batch", f"critical batch, {model}", batch)
        sizes.append(float(rows["N_params_M"][0]) * 1e6)
        critical.append(batch)
    runs = {"tokens": 20.0 * np.array(sizes), "batch_tokens": np.array(critical) * 512.0}
    if len(sizes) == ZHANG_SIZES:  # the published exponent rests on all of them
        exponent = fit("critical-batch", runs, starts=20).fitted.values()["a"]
        result.add("steps-batch", "exponent in params, D = 20 N", exponent)


def routed(path: Path, result: LawCheck) -> None:
    """Clark's released runs, last steps."""
    table = load(path, params="dense_parameter_count", loss="loss_validation", experts="num_experts")
    table["flops"] = table["flops_per_step"] * table["step"]
    table = where(table, (table["step"] >= 240_000) & (table["k"] == 1) & (table["routing_frequency"] == 0.5))
    dense = table["router_type"] == "Dense"
    for router in ("S-Base", "RL-R", "Hash"):
        rows = where(table, dense | (table["router_type"] == router))
        for name, value in fit("routed", rows, starts=60).fitted.values().items():
            result.add("routed", f"{name}, {router}", value)
        result.hold_out(f"routed {router}", "routed", rows)


def vocabulary(path: Path, result: LawCheck) -> None:
    """Tao's runs with ten vocabularies."""
    values = published(LAWS.get("vocabulary")).values()
    # Approach 1's budget for 7e9 non-vocabulary parameters, N_nv = exp(-2.484651) C^0.5, at Llama's width.
    budget = (7e9 / np.exp(-2.484651)) ** 2
    result.add("vocabulary", "vocabulary of 7e9 parameters, approach 3", best_vocabulary(7e9, 4096.0, budget, values))
    result.hold_out("vocabulary", "vocabulary", load(path), cover=False)


def step_law(path: Path, result: LawCheck) -> None:
    """Step Law's grids: choose learning rate and batch of each size from the other sizes."""
    table = load(path, loss="smooth loss")
    best = where(table, table["loss"] == cell_least(table))
    result.hold_out("step-law cells", "hoffmann", best, cover=False)
    law = LossBowl()
    for size, unseen in groups(table, "params"):
        values = fit("loss-bowl", where(table, table["params"] != size), starts=80).fitted.values()
        smaller = where(best, best["params"] < size)
        known = smaller if len(smaller["params"]) else where(best, best["params"] != size)
        ours, copied = [], []
        for tokens, cell in groups(unseen, "tokens"):
            rate, batch = law.best(size, tokens, values)
            ours.append(_regret(cell, float(rate), float(batch)))
            near = np.log(known["params"] / size) ** 2 + np.log(known["tokens"] / tokens) ** 2
            i = int(near.argmin())
            copied.append(_regret(cell, float(known["learning_rate"][i]), float(known["batch_tokens"][i])))
        result.regret.append(Regret(float(size), len(ours), float(np.mean(ours)), float(np.mean(copied))))


def _regret(cell: Rows, rate: float, batch: float) -> float:
    far = np.log(cell["learning_rate"] / rate) ** 2 + np.log(cell["batch_tokens"] / batch) ** 2
    return float(cell["loss"][far.argmin()] / cell["loss"].min() - 1.0)


def regmix(path: Path, result: LawCheck) -> None:
    """RegMix: 512 one-million-parameter runs rank mixtures of larger ones."""

    def mixtures(part: str, size: str) -> Rows:
        mixes, losses = load(path / f"{part}_mixture_{size}.csv"), load(path / f"{part}_pile_loss_{size}.csv")
        row = {index: i for i, index in enumerate(losses["index"])}
        order = [row[index] for index in mixes["index"]]
        table: Rows = {
            PREFIX + name.removeprefix("train_the_pile_"): column
            for name, column in mixes.items()
            if name.startswith("train_")
        }
        table["loss"] = losses["metric/the_pile_pile_cc_val_loss"][order]
        return table

    train = mixtures("train", "1m")
    linear, exponential = fit("regmix", train, starts=5).fitted, fit("mixing", train, starts=20).fitted
    trees = boosted(train)
    for size in ("1m", "60m", "1B"):
        if not (path / f"test_mixture_{size}.csv").exists():
            continue
        test = mixtures("test", size)
        label = size.upper()
        result.add("regmix", f"linear, {label}", spearman(linear.predict_arrays(test)[0], test["loss"]))
        result.add("regmix", f"trees, {label}", spearman(trees.predict(shares(test)), test["loss"]))
        _ranked(result, f"regmix {label}", "mixing", exponential.predict_arrays(test)[0], test["loss"])


def mixing(path: Path, result: LawCheck) -> None:
    """Ye's runs: two domains by the law's own fit, five domains by rank of mixtures, each held out once."""
    table = load(path)
    two = where(table, (table["family"] == "2Mix") & (table["size"] == "70M") & (table["step"] == 30_000))
    for domain, rows in groups(two, "val_domain"):
        found = fit("mixing", _with_shares(rows), starts=60)
        residual = float(np.abs(found.table["loss"] - found.predicted).max())
        result.add("mixing", f"max residual, {domain}", residual)
    five = where(table, (table["family"] == "5Mix") & (table["size"] == "70M") & (table["step"] == 30_000))
    for domain, rows in groups(five, "val_domain"):
        if domain not in ("Github", "Pile-CC", "ArXiv", "Books3"):
            continue
        named = _with_shares(rows)
        fold = np.random.default_rng(0).permutation(len(rows["loss"])) % FOLDS
        predicted = np.zeros(len(fold))
        for number in range(FOLDS):
            law = fit("mixing", where(named, fold != number), starts=20).fitted
            predicted[fold == number] = law.predict_arrays(where(named, fold == number))[0]
        _ranked(result, f"mixing laws, 5 domains, {domain}", "mixing", predicted, rows["loss"])


def _with_shares(rows: Rows) -> Rows:
    """Shares from names such as 70M_base2_3-0.5-0.5."""
    pieces = np.array([[float(share) for share in str(name).split("-")[1:]] for name in rows["mixture"]])
    return {**rows, **{f"{PREFIX}{i + 1}": column for i, column in enumerate(pieces.T)}}


def _ranked(result: LawCheck, table: str, law: str, predicted: Floats, observed: Floats) -> None:
    from froude.laws.check import HeldOut

    ape = np.abs(predicted / observed - 1.0)
    rank = spearman(predicted, observed)
    result.holdout.append(
        HeldOut(table, law, len(observed), float(np.median(ape)), float(np.quantile(ape, 0.9)), rank, None)
    )


def fine_tuning(path: Path, result: LawCheck) -> None:
    """Lin's 30 models: each curve fitted, and its largest sets predicted from the smaller ones."""
    table: Any = load(path)
    sizes = np.array([int(name) for name in table if name.isdigit() and int(name) > 0], dtype=float)
    errors, last = [], []
    for row in range(len(table["config name"])):
        loss = np.array([float(table[str(int(size))][row]) for size in sizes])
        curve = {"examples": sizes, "loss": loss}
        found = fit("fine-tuning", curve, starts=60)
        errors.append(float(np.sqrt(np.mean(np.log(found.predicted / loss) ** 2))))
        held = fit("fine-tuning", curve, starts=60, holdout="examples:0.15").holdout
        last.append(held.median_ape if held else np.nan)
    result.add("fine-tuning", f"RMSD, {path.stem}", float(np.mean(errors)))
    from froude.laws.check import HeldOut

    p90 = float(np.quantile(last, 0.9))
    result.holdout.append(
        HeldOut(f"fine-tuning {path.stem}", "fine-tuning", len(last), float(np.median(last)), p90, float("nan"), None)
    )


CHECKS: tuple[tuple[str, Callable[[Path, LawCheck], None]], ...] = (
    ("epoch_chinchilla/hoffmann_points.csv", hoffmann_points),
    ("datablations/fit_set_182.csv", datablations),
    ("porian_resolving/optimal_pairs.csv", porian),
    ("porian_resolving/isoflop_points.csv", porian_runs),
    ("gadre_overtraining/models_loss.csv", gadre),
    ("gemstone/val_losses.csv", gemstone),
    ("critical_batch_size_zhang/steps_to_target.csv", zhang),
    ("routed_moe_and_mixture/moe_scaling_law__data.csv", routed),
    ("vocab_scaling/exp_data.csv", vocabulary),
    ("steplaw/dense_lr_bs_loss.csv", step_law),
    ("regmix", regmix),
    ("mixing_laws/losses.csv.gz", mixing),
    ("rectified_finetune/flan.csv", fine_tuning),
    ("rectified_finetune/gigaword.csv", fine_tuning),
    ("rectified_finetune/wmt19.csv", fine_tuning),
)
