"""What else a budget decides: vocabulary, a mixture of experts, precision of training and of serving, error on tasks.

Each comes from the published law about it, with that law's own data and uncertainty; none of them changes the split of
the budget, which the law of loss makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from froude.core.arrays import Floats
from froude.core.estimate import Estimate
from froude.laws.allocation import TRAIN_FLOPS
from froude.laws.api import load
from froude.laws.fitted import BEYOND, FittedLaw, interval
from froude.laws.law import unpack
from froude.laws.library.vocabulary import best_vocabulary

DRAWS = 60  # of a law's coefficients behind an interval; optima are found for each
# Krajewski et al. (2024), arXiv:2402.07871, section 5.2: width is 64 times depth, a layer's active parameters are
# 12 width^2, and routing costs 14 FLOPs per token, width, expansion and granularity.
WIDTH_OVER_DEPTH, LAYER_PARAMS, ROUTING_FLOPS = 64.0, 12.0, 14.0
EXPANSION = 64.0  # of total over active parameters, that of the law's data
GRANULARITIES = 2.0 ** np.arange(0, 8)
FULL_BITS = 16.0
# Kumar et al. (2024), arXiv:2411.04330, section 4.3.2: with size, tokens and precision chosen together, 7 to 8 bits at
# any budget. Quoted, not computed: the constants known of that law are uncertain and would say 3.5.
TRAINING_BITS = Estimate(8.0, 7.0, 8.0, ("Kumar et al. 2024, arXiv:2411.04330, section 4.3.2",))
SIZES = np.geomspace(1e6, 1e14, 321)
NEGLIGIBLE = 0.01  # relative rise of loss that a single run's scatter would hide


@dataclass(frozen=True)
class Choices:
    """Choices beside the split, each an 80% interval of its own law."""

    vocab_size: Estimate
    experts: Estimate
    granularity: Estimate
    active_share: Estimate
    mixture_active_params: Estimate
    mixture_tokens: Estimate
    training_bits: Estimate
    inference_bits: Estimate
    downstream_error: Estimate | None
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]

    def json(self) -> dict[str, dict[str, float] | None]:
        """Every estimate by its name."""
        return {
            name: value.json() if isinstance(value, Estimate) else None
            for name, value in vars(self).items()
            if name not in ("assumptions", "warnings")
        }


def choose(params: float, tokens: float, width: float, loss: Estimate | None) -> Choices:
    """For a model of ``params`` parameters and ``width``, trained on ``tokens`` to ``loss``."""
    flops = TRAIN_FLOPS * params * tokens
    vocabulary, experts = load("vocabulary"), load("fine-grained-moe")
    rounding, tasks = load("post-quantisation"), load("downstream-error")
    mixture = np.array([_mixture(c, flops) for c in _coefficients(experts)])
    words = _estimate(vocabulary, lambda c: best_vocabulary(params, width, flops, c))
    laws = {"vocabulary": vocabulary, "experts": experts, "inference bits": rounding}
    error = None
    if loss is not None:
        middle, _ = tasks.predict(loss=loss.value)
        low, _ = tasks.predict(loss=loss.low)
        high, _ = tasks.predict(loss=loss.high)
        error = Estimate(middle.value, min(low.low, middle.low), max(high.high, middle.high), middle.provenance)
        laws["error on tasks (as if the loss were on C4, in its vocabulary)"] = tasks
    said = [f"{what}: {law.provenance}" for what, law in laws.items()]
    said.append(f"training bits: {TRAINING_BITS.provenance[0]}, quoted")
    return Choices(
        vocab_size=words,
        experts=_of(EXPANSION * mixture[:, 2]),
        granularity=_of(mixture[:, 2]),
        active_share=Estimate(1.0 / EXPANSION, 1.0 / EXPANSION, 1.0 / EXPANSION),
        mixture_active_params=_of(mixture[:, 0]),
        mixture_tokens=_of(mixture[:, 1]),
        training_bits=TRAINING_BITS,
        inference_bits=_estimate(rounding, lambda c: _inference_bits(c, params, tokens, loss)),
        downstream_error=error,
        assumptions=(*said, f"a mixture has {EXPANSION:g} times its active parameters, as its law's data have"),
        warnings=(*_beyond((vocabulary, rounding), params), *_beyond((experts,), float(EXPANSION * mixture[0, 0]))),
    )


def _mixture(c: dict[str, float], flops: float) -> tuple[float, float, float]:
    """Active parameters, tokens and granularity of least loss, routing paid for."""
    from froude.laws.library.fine_grained_moe import FineGrainedMoe

    params, fine = SIZES[:, None], GRANULARITIES[None, :]
    width = (WIDTH_OVER_DEPTH * params / LAYER_PARAMS) ** (1.0 / 3.0)
    per_token = TRAIN_FLOPS * params + ROUTING_FLOPS * width * EXPANSION * fine * width / WIDTH_OVER_DEPTH
    tokens = flops / per_token
    # The law's N counts all experts: only so do its coefficients give the paper's compute-optimal models.
    loss = FineGrainedMoe().predict({"params": EXPANSION * params, "tokens": tokens, "granularity": fine}, c)
    row, column = np.unravel_index(int(np.argmin(loss)), loss.shape)
    return float(SIZES[row]), float(tokens[row, column]), float(GRANULARITIES[column])


def _inference_bits(c: dict[str, float], params: float, tokens: float, loss: Estimate | None) -> float:
    """Fewest bits of the weights whose rounding after training stays within a run's scatter."""
    allowed = NEGLIGIBLE * (loss.value if loss is not None else 2.0)
    size = c["C_T"] * tokens ** c["gamma_D"] * params ** -c["gamma_N"]
    return float(np.clip(c["gamma_post"] * np.log(max(size / allowed, 1.0)), 1.0, FULL_BITS))


def _beyond(laws: tuple[FittedLaw, ...], params: float) -> list[str]:
    """Which of the laws is asked beyond its data, in one sentence each."""
    said = []
    for law in laws:
        largest = max(law.ranges[name][1] for name in ("params", "non_vocab_params") if name in law.ranges)
        if params > BEYOND * largest:
            said.append(f"extrapolation: {law.law.name} rests on models {params / largest:.3g} times smaller")
    return said


def _coefficients(law: FittedLaw) -> list[dict[str, float]]:
    """The law's coefficients, then draws of them."""
    rows = np.vstack([law.theta[None, :], law.samples[:DRAWS]])
    values = unpack(law.law.symbols, rows)
    return [{name: float(value[i, 0]) for name, value in values.items()} for i in range(len(rows))]


def _estimate(law: FittedLaw, optimum: Callable[[dict[str, float]], float]) -> Estimate:
    return _of(np.array([optimum(c) for c in _coefficients(law)]))


def _of(draws: Floats) -> Estimate:
    return Estimate(float(draws[0]), *interval(draws, float(draws[0])))
