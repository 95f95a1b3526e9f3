from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from froude.cli import app
from froude.core.errors import FroudeError
from froude.planning.calibration_check import check_calibration
from froude.timing.constants import default_constants
from froude.training.calibration import Calibration
from froude.training.measured import predicted_step_s
from froude.training.runs import COLUMNS, run_of

# The 22B model of Korthikanti et al. 2022 (arXiv:2205.05198), in layouts of one and two nodes.
SHAPE = dict.fromkeys(COLUMNS) | {
    "source": "a cluster", "use": "yes", "model": "megatron_22B", "device": "a100-sxm-80gb", "layers": 48,
    "hidden": 6144, "heads": 64, "ffn": 24576, "vocab": 51200, "seq": 2048, "precision": "bf16", "cp": 1, "sp": 1,
    "zero_stage": 1, "global_batch_seqs": 64, "attention": "flash-2", "fused_norm": "yes",
}  # fmt: skip
LAYOUTS = [(tp, pp, mb, re) for tp in (4, 8) for pp in (1, 2) for mb in (1, 2) for re in ("full", "none")]


def table(path: Path, slower: float) -> Path:
    """Steps of a cluster whose clock is lower by a factor than is assumed."""
    clock = default_constants()["clock.ampere"]
    rows = []
    for number, (tp, pp, micro_batch, recompute) in enumerate(LAYOUTS):
        cells = SHAPE | {"id": number, "tp": tp, "pp": pp, "n_gpus": 16, "micro_batch": micro_batch}
        run = run_of(cells | {"recompute": recompute})
        scenario = Calibration(constants={"clock.ampere": clock / slower}).apply(run.scenario)
        rows.append(cells | {"recompute": recompute, "step_s": predicted_step_s(scenario, run.layout)})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_two_runs_of_a_slow_cluster_tell_the_others(tmp_path: Path) -> None:
    (found,) = check_calibration(table(tmp_path / "steps.csv", 1.2)).sources
    assert found.n == len(LAYOUTS)
    assert found.before > 0.08
    assert found.after < 0.5 * found.before
    assert found.helped == 1.0
    (more,) = check_calibration(tmp_path / "steps.csv", runs=4).sources
    assert more.after < found.after


def test_runs_as_predicted_stay_so(tmp_path: Path) -> None:
    (found,) = check_calibration(table(tmp_path / "steps.csv", 1.0)).sources
    assert found.before == pytest.approx(0.0, abs=1e-6)
    assert found.after == pytest.approx(0.0, abs=1e-6)


def test_the_command(tmp_path: Path) -> None:
    path = table(tmp_path / "steps.csv", 1.1)
    result = CliRunner().invoke(app, ["check", "calibrate", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["by_source"][0]["source"] == "a cluster"
    with pytest.raises(FroudeError, match="runs"):
        check_calibration(path, runs=9)
