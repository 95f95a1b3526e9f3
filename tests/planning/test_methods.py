"""The list of methods that can be switched on."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from froude.cli import app
from froude.core.errors import FroudeError
from froude.planning.methods import KINDS, list_techniques


def test_every_method_says_what_it_does_and_where_it_is_from() -> None:
    found = list_techniques()
    assert len(found) == sum(len(registry.names()) for _, registry, _ in KINDS)
    assert {"zero-plus-plus", "nanoflow", "polca", "adadagrad", "interleaved-1f1b", "sarathi-serve"} <= {
        item["name"] for item in found
    }
    for item in found:
        assert len(item["does"]) > 30, item["name"]
        assert item["kind"] == "router" or item["source"], item["name"]


def test_one_by_name_or_alias() -> None:
    (item,) = list_techniques("Zero_Plus_Plus")
    assert item["knobs"]["hpz"] is True
    assert "arXiv:2306.10209" in item["source"]
    assert list_techniques("1f1b")[0]["name"] == "one-forward-one-backward"
    with pytest.raises(FroudeError, match="did you mean 'nanoflow'"):
        list_techniques("nano-flow")


def test_command() -> None:
    run = CliRunner().invoke(app, ["show", "techniques", "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["techniques"]
    one = CliRunner().invoke(app, ["show", "techniques", "polca"])
    assert "knob budget_w" in one.stdout and "must be given" in one.stdout
