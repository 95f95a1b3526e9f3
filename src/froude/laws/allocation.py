"""What a budget buys under a law: parameters and tokens of least loss, counting inference and repeated data.

Inference to come is part of the budget (Sardana et al., 2023, Beyond Chinchilla-Optimal, arXiv:2401.00448): training
takes 6 N D FLOPs, serving T tokens 2 N T, and the split of least loss for their sum is smaller and trained longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Floats
from froude.core.errors import FroudeError, InvalidValueError
from froude.core.registry import Source
from froude.laws.fitted import FittedLaw
from froude.laws.law import Law, unpack

source = Source(
    "Sardana et al.",
    2023,
    "Beyond Chinchilla-Optimal: Accounting for Inference in Language Model Scaling Laws",
    "arXiv:2401.00448",
    catalogue=309,
)

TRAIN_FLOPS, INFERENCE_FLOPS = 6.0, 2.0  # per parameter and token
SIZES = np.geomspace(1e4, 1e15, 353)  # candidates; a parabola through the best three refines them
BUDGETS = np.geomspace(1e15, 1e32, 69)


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal choices: the first entry from the law's coefficients, the others from draws of them."""

    flops: Floats
    params: Floats
    tokens: Floats
    loss: Floats | None

    @property
    def training_flops(self) -> Floats:
        """Without inference."""
        return TRAIN_FLOPS * self.params * self.tokens


def allocate(
    law: FittedLaw, flops: float, *, inference_tokens: float = 0.0, unique_tokens: float | None = None
) -> Allocation:
    """Least loss for a lifetime budget: training, and serving ``inference_tokens`` afterwards.

    Raises:
        FroudeError: the law says nothing about loss against parameters and tokens, nor about their best split.
    """
    if not np.isfinite(flops) or flops <= 0:
        raise InvalidValueError("flops", flops, "must be a positive number")
    thetas = np.vstack([law.theta[None, :], law.samples])
    budgets = np.full(len(thetas), float(flops))
    return _allocate(law, thetas, budgets, inference_tokens, unique_tokens)


def least_flops(
    law: FittedLaw, target_loss: float, *, inference_tokens: float = 0.0, unique_tokens: float | None = None
) -> Allocation:
    """The smallest lifetime budget that reaches a loss.

    Raises:
        FroudeError: the law's loss never gets there.
    """
    thetas = np.vstack([law.theta[None, :], law.samples])
    reached = np.stack(
        [_loss(_allocate(law, thetas, np.full(len(thetas), b), inference_tokens, unique_tokens)) for b in BUDGETS],
        axis=1,
    )
    if reached[0].min() > target_loss:
        floor = float(reached[0].min())
        raise FroudeError(
            f"target-loss: {target_loss:g} is below what {law.law.name!r} reaches with any budget, about {floor:.4g}"
        )
    if reached[0].max() < target_loss:
        raise InvalidValueError("target-loss", target_loss, "is above the loss of the smallest budgets")
    # Loss falls with budget, so interpolate its logarithm between neighbouring budgets.
    logs = np.array(
        [np.interp(-target_loss, -np.maximum.accumulate(row[::-1])[::-1], np.log(BUDGETS)) for row in reached]
    )
    return _allocate(law, thetas, np.exp(logs), inference_tokens, unique_tokens)


def splits(law: Law) -> bool:
    """Whether a law can divide a budget: by its own rule, or because it predicts loss from params and tokens."""
    return law.allocate.__func__ is not Law.allocate or minimisable(law)  # type: ignore[attr-defined]


def minimisable(law: Law) -> bool:
    """Whether a law predicts loss from parameters and tokens (and unique tokens) alone."""
    return law.target == "loss" and {"params", "tokens"} <= set(law.columns()) <= {"params", "tokens", "unique_tokens"}


def _loss(found: Allocation) -> Floats:
    if found.loss is None:
        raise FroudeError("target-loss: this law gives a split of the budget but no loss; use one that predicts loss")
    return found.loss


def _allocate(
    law: FittedLaw, thetas: Floats, budgets: Floats, inference_tokens: float, unique_tokens: float | None
) -> Allocation:
    form = law.law
    coefficients = unpack(form.symbols, thetas)
    plain = inference_tokens <= 0 and "unique_tokens" not in form.columns()
    direct = form.allocate.__func__ is not Law.allocate  # type: ignore[attr-defined]
    if direct and (plain or not minimisable(form)):
        flat = {name: value[:, 0] for name, value in coefficients.items()}
        split = form.allocate(budgets, flat)
        params, tokens = (
            np.broadcast_to(split["params"], budgets.shape),
            np.broadcast_to(split["tokens"], budgets.shape),
        )
    elif minimisable(form):
        params, tokens = _minimise(form, coefficients, budgets, inference_tokens, unique_tokens)
    else:
        raise FroudeError(f"law: {form.name!r} does not say how to divide a budget between parameters and tokens")
    loss = None
    if minimisable(form):
        inputs = _inputs(form, params[:, None], tokens[:, None], unique_tokens)
        with np.errstate(all="ignore"):
            loss = np.asarray(form.predict(inputs, coefficients), dtype=float)[:, 0]
        loss = np.where(tokens > 0, loss, np.inf)
    return Allocation(budgets, np.array(params), np.array(tokens), loss)


def _minimise(
    form: Law, coefficients: dict[str, Floats], budgets: Floats, inference_tokens: float, unique_tokens: float | None
) -> tuple[Floats, Floats]:
    def tokens_left(params: Floats) -> Floats:
        return (budgets[:, None] - INFERENCE_FLOPS * params * inference_tokens) / (TRAIN_FLOPS * params)

    def loss(params: Floats) -> Floats:
        tokens = tokens_left(params)
        with np.errstate(all="ignore"):
            value = form.predict(_inputs(form, params, np.maximum(tokens, 1.0), unique_tokens), coefficients)
        return np.where((tokens > 1.0) & np.isfinite(value), value, np.inf)

    grid = np.broadcast_to(SIZES, (len(budgets), len(SIZES)))
    table = loss(grid)
    best = np.clip(table.argmin(axis=1), 1, len(SIZES) - 2)
    rows = np.arange(len(budgets))
    left, middle, right = table[rows, best - 1], table[rows, best], table[rows, best + 1]
    with np.errstate(all="ignore"):
        bend = left - 2.0 * middle + right
        shift = np.where((bend > 0) & np.isfinite(bend), 0.5 * (left - right) / bend, 0.0)
    params = SIZES[best] * (SIZES[1] / SIZES[0]) ** np.clip(shift, -1.0, 1.0)
    return params, tokens_left(params[:, None])[:, 0]


def _inputs(form: Law, params: Floats, tokens: Floats, unique_tokens: float | None) -> dict[str, Floats]:
    inputs = {"params": params, "tokens": tokens}
    if "unique_tokens" in form.columns():
        inputs["unique_tokens"] = tokens if unique_tokens is None else np.minimum(tokens, unique_tokens)
    return inputs
