"""Predicted against measured: what the directories of real runs say."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from froude.core.errors import FroudeError

DISTURBED = 0.1
"""Above this share of the processor time taken by other programs a measured time says little."""


@dataclass(frozen=True)
class RunCheck:
    """Runs and how far their predictions were off.

    Attributes:
        runs: one mapping per run: name, predicted_step_s, measured_step_s, predicted_bytes, measured_bytes, and
            others_share, the part of the machine that other programs took meanwhile.
        median_ape, worst_ape: absolute errors of step time as fractions of the measured.
        rank_spearman: rank correlation of predicted and measured step time; None with fewer than two runs.
        skipped: runs without a measured step time.
    """

    runs: list[dict[str, Any]]
    median_ape: float
    worst_ape: float
    rank_spearman: float | None
    skipped: list[dict[str, str]]

    @property
    def warnings(self) -> list[str]:
        """Runs that other programs disturbed."""
        disturbed = [run["name"] for run in self.runs if run["others_share"] >= DISTURBED]
        if not disturbed:
            return []
        return [f"other programs took more than {100 * DISTURBED:.0f}% of the machine during: {', '.join(disturbed)}"]

    def json(self) -> dict[str, Any]:
        """What ``froude check run --json`` prints."""
        return vars(self)


def check_run(directory: str | Path, names: Collection[str] | None = None) -> RunCheck:
    """Compare prediction and measurement of one run, or of every run (or those of some names) in a directory of runs.

    Raises:
        FroudeError: when there is no run to compare.
    """
    root = Path(directory)
    if not root.is_dir():
        raise FroudeError(f"run directory: no such directory: {root}")
    files = [root / "meta.json"] if (root / "meta.json").is_file() else sorted(root.glob("*/meta.json"))
    if names is not None:
        files = [file for file in files if file.parent.name in names]
    if not files:
        raise FroudeError(f"run directory: {root} holds no meta.json and neither does any directory in it")
    runs: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for file in files:
        meta = _read(file)
        if meta["measured_step_s"] is None or meta["predicted_step_s"] is None:
            skipped.append(
                {"name": meta["name"], "reason": f"{meta['status']} without a timed step of the plan's batch"}
            )
            continue
        runs.append({key: meta[key] for key in _KEYS} | {"others_share": meta.get("others_share", 0.0)})
    if not runs:
        raise FroudeError(f"run directory: {root}: {skipped[0]['name']} {skipped[0]['reason']}")
    errors = [abs(run["predicted_step_s"] / run["measured_step_s"] - 1.0) for run in runs]
    return RunCheck(runs, statistics.median(errors), max(errors), _rank(runs), skipped)


_KEYS = ("name", "predicted_step_s", "measured_step_s", "predicted_bytes", "measured_bytes")


def _rank(runs: list[dict[str, Any]]) -> float | None:
    predicted, measured = ([run[key] for run in runs] for key in ("predicted_step_s", "measured_step_s"))
    if len(set(predicted)) < 2 or len(set(measured)) < 2:
        return None  # nothing to put in order
    return float(spearmanr(predicted, measured).statistic)


def _read(file: Path) -> dict[str, Any]:
    try:
        meta = json.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FroudeError(f"{file}: not a run's meta.json ({error})") from None
    missing = [key for key in (*_KEYS, "status") if not isinstance(meta, dict) or key not in meta]
    if missing:
        raise FroudeError(f"{file}: {missing[0]}: missing, and it is required")
    return dict(meta)
