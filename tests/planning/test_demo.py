"""The main job, end to end, in a small edition: real measuring, real processes, real training."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from froude.planning import demo
from froude.reports.demo import own_machine_rows, write_demo_report

pytest.importorskip("torch")


def test_the_whole_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STEPS", 3)
    monkeypatch.setattr(demo, "ATTEMPTS", 1)
    monkeypatch.setattr(demo, "WIDTHS", (16, 32))
    monkeypatch.setattr(demo, "NEXT_WIDTH", 48)
    monkeypatch.setattr(demo, "LADDER_STEPS", 40)
    monkeypatch.setattr(demo, "BATCH_SEQUENCES", 4)
    monkeypatch.setattr(demo, "SERVING", demo.SERVING | {"requests": 6, "calibration_s": 2.0})
    monkeypatch.setattr(demo, "real_weights", lambda: False)  # quicker to load
    said: list[tuple[str, float]] = []
    done = demo.run_demo(tmp_path, on_progress=lambda what, share: said.append((what, share)))
    assert said[-1] == ("done", 1.0)
    shares = [share for _, share in said]
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(shares))
    assert len(done.runs.runs) == 4  # the best layout and three of other kinds
    assert done.serving.measured.e2e_s.min() > 0
    assert done.large.plans[0].prediction.p_fit > 0.9
    demo.write_summary(done, tmp_path / "demo.json")
    assert json.loads((tmp_path / "demo.json").read_text())["training"]["runs"]
    page = write_demo_report(done, tmp_path).read_text()
    rows = own_machine_rows(done)
    assert len(rows) == 4 + 4 + 4 + 1
    assert page.index(rows[0][0]) < page.index("<h2>")  # the own-machine table comes first
