from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from froude.laws.library.hoffmann import Hoffmann


def froude(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "froude.cli", *map(str, words)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 9, 30), 10 ** rng.uniform(9, 10.5, 30)
    truth = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.36}
    loss = Hoffmann().predict({"params": n, "tokens": d}, truth) * np.exp(0.005 * rng.standard_normal(30))
    file = tmp_path_factory.mktemp("runs") / "runs.csv"
    file.write_text("N,D,final,kind\n" + "".join(f"{a},{b},{c},small\n" for a, b, c in zip(n, d, loss, strict=True)))
    return file


def test_fit_then_predict(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.yaml"
    done = froude(
        "fit",
        runs,
        "--law",
        "hoffmann",
        "--columns",
        "loss=final",
        "--bootstrap",
        50,
        "--holdout",
        "largest:0.15",
        "--json",
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) >= {
        "law",
        "coefficients",
        "objective",
        "r2",
        "n",
        "outliers",
        "warnings",
        "holdout",
        "fit_s",
        "schema_version",
    }
    alpha = result["coefficients"]["alpha"]
    assert alpha["low"] < alpha["value"] < alpha["high"]
    assert result["holdout"]["n"] == 4 and result["holdout"]["median_ape"] < 0.03
    assert (tmp_path / "fit.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "fit.html").stat().st_size > 1000
    said = froude("predict", "--law", out, "params=1e9", "tokens=2e10", "--json")
    loss = json.loads(said.stdout)["loss"]
    assert loss["low"] < loss["value"] < loss["high"] and loss["value"] == pytest.approx(2.4, rel=0.05)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--law", "hofmann", "--columns", "loss=final"), "did you mean 'hoffmann'?"),
        (("--law", "hoffmann"), "column 'loss' is missing"),
        (("--law", "hoffmann", "--columns", "loss=finale"), "did you mean 'final'?"),
        (("--law", "hoffmann", "--columns", "loss=kind"), "holds text"),
        (("--law", "hoffmann", "--columns", "loss=final", "--holdout", "big:2"), "holdout"),
        (("--law", "hoffmann", "--columns", "loss"), "name=value"),
        (("--law", "hoffmann", "--columns", "loss=final,parms=N"), "did you mean 'params'?"),
        (("--law", "hoffmann", "--columns", "loss=final", "--where", "kind=1..3"), "holds text"),
        (("--law", "hoffmann", "--columns", "loss=final", "--where", "D=1..3"), "leaves no rows"),
        (("--law", "qqqq"), "it should be one of: "),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(runs: Path, tmp_path: Path, words: tuple, sentence: str) -> None:
    done = froude("fit", runs, *words, "--out", tmp_path / "out.yaml")
    assert done.returncode == 2
    assert sentence in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
