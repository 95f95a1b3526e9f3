"""Learn an iteration's time from outside: from when the tokens of requests came, where iterations cannot be seen.

The simulator is run on the recorded requests, and its coefficients are moved until first tokens and times per token
are what was recorded: four coefficients (an iteration, a decoding sequence, a prompt, a prompt token), by Nelder and
Mead's simplex on the mean logarithmic error.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from scipy.optimize import minimize

from froude.core.arrays import Floats
from froude.core.errors import FroudeError
from froude.runtime.engine.calibration import Calibration, FittedIterationTime
from froude.runtime.engine.spec import ServeSpec
from froude.serving.metrics import PS
from froude.serving.policy import Sequence
from froude.serving.simulator import jump

_FEWEST = 8  # requests
_STEPS = 200


def sequences_of(rows: Items[Mapping[str, Any]]) -> list[Sequence]:
    """Recorded requests, as they arrived."""
    start_s = min(row["arrival_time"] for row in rows)
    return [
        Sequence(
            i,
            round((row["arrival_time"] - start_s) * PS),
            row["input_toks"],
            row["output_toks"],
            limit_tokens=row.get("max_tokens"),
            prefix=tuple(row.get("hash_ids", ())),
            client=row.get("client", 0),
        )
        for i, row in enumerate(rows)
    ]


def infer_iteration_time(spec: ServeSpec, rows: Items[Mapping[str, Any]]) -> Calibration:
    """Coefficients with which the simulator gives the recorded times.

    Raises:
        FroudeError: when there are too few requests.
    """
    if len(rows) < _FEWEST:
        raise FroudeError(f"calibration: {len(rows)} requests are too few; at least {_FEWEST} are needed")
    arrival, first, last = (
        np.array([row[name] for row in rows]) for name in ("arrival_time", "first_token_ts", "last_token_ts")
    )
    prompts, outputs = (np.array([row[name] for row in rows]) for name in ("input_toks", "output_toks"))
    several = outputs > 1
    ttft = first - arrival
    tpot = (last - first)[several] / (outputs - 1)[several]
    token_s = float(np.quantile(tpot, 0.1)) if tpot.size else float(np.quantile(ttft, 0.1))
    guess = np.log([0.7 * token_s, 0.1 * token_s, 0.3 * token_s, float(np.quantile(ttft / prompts, 0.1))])

    def made(x: Floats) -> FittedIterationTime:
        base, decoding, prompt, prompt_token = (max(1, round(float(c) * PS)) for c in np.exp(x))
        return FittedIterationTime(base, 0, decoding, 0, prompt, prompt_token, 0)

    def errors(x: Floats) -> Floats:
        sequences = sequences_of(rows)
        outcome = jump(
            sequences,
            spec.make_scheduler(),
            made(x),
            spec.kv_blocks,
            spec.block_tokens,
            concurrency=spec.concurrency,
        )
        begun, done = np.array(outcome.first_ps) / PS, np.array(outcome.finish_ps) / PS
        predicted = begun - np.array([s.arrival_ps for s in sequences]) / PS
        each = (done - begun)[several] / (outputs - 1)[several]
        return np.abs(np.log(np.concatenate([predicted / ttft, each / tpot])))

    fit = minimize(lambda x: float(errors(x).mean()), guess, method="Nelder-Mead", options={"maxfev": _STEPS})
    return Calibration(
        time=made(fit.x),
        iterations=0,
        median_ape=float(np.median(np.expm1(errors(fit.x)))),
        disturbance=1.0,
        longest_sequence=int((prompts + outputs).max()),
    )
