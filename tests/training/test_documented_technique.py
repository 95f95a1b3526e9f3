"""The technique that docs/contracts.md shows is one that works."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from froude.core.registry import Source
from froude.machines.cluster import parse_cluster
from froude.models.catalogue import resolve
from froude.models.operator import Elementwise
from froude.program.play import play
from froude.program.program import Action
from froude.training.plan import Job, Layout
from froude.training.price import add_up, price_pass
from froude.training.scenario import Scenario
from froude.training.step import predict
from froude.training.technique import TrainingTechnique

PAGE = Path(__file__).parents[2] / "docs" / "contracts.md"


def test_it_weaves_a_pass_into_every_stage() -> None:
    code = next(c for c in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "TrainingTechnique" in c)
    names: dict = {
        "dataclass": dataclass,
        "TrainingTechnique": TrainingTechnique,
        "Source": Source,
        "add_up": add_up,
        "price_pass": price_pass,
        "Elementwise": Elementwise,
        "Action": Action,
    }
    exec(code, names)
    job = Job(seq_len=2048, global_batch_tokens=2048 * 16)
    layout = Layout(data_parallel=2, pipeline_parallel=4)

    def step(*techniques: TrainingTechnique):
        return predict(
            Scenario(resolve("llama-3.1-8b"), parse_cluster("h100-sxm:8"), job, techniques=techniques), [layout]
        )[0]

    before, after = step(), step(names["GradientNoise"]())
    assert len(after.program.find("norm")) == 4 * 8
    assert after.step_s > before.step_s
    assert play(after.program).timeline.makespan_s[0] == pytest.approx(after.timeline.makespan_s[0], rel=0.05)
