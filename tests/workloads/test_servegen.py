"""ServeGen's client data: rates, bursts and lengths of many clients."""

from __future__ import annotations

import json

import numpy as np
import pytest

from froude.core.errors import FroudeError
from froude.workloads.readers import load_trace

LENGTHS = {"0": {"input_tokens": "{}", "output_tokens": "{}"}, "600": {"input_tokens": "{100: 0.25, 300: 0.75}"}}
LENGTHS["600"]["output_tokens"] = "{7: 1.0}"


@pytest.fixture
def folder(tmp_path):
    """A steady client, and one that begins later, in bursts."""
    (tmp_path / "chunk-0-trace.csv").write_text("0,2.0,1,Gamma,1.0,0.1\n600,2.0,1,Gamma,1.0,0.1\n")
    (tmp_path / "chunk-10-trace.csv").write_text("0,0,0,,0,0\n600,6.0,4,Weibull,0.4,0.03\n")
    for client in (0, 10):
        (tmp_path / f"chunk-{client}-dataset.json").write_text(json.dumps(LENGTHS))
    return tmp_path


def test_rates_bursts_and_lengths(folder):
    trace = load_trace(str(folder), seed=1, requests=5500)
    assert trace.client is not None and (np.diff(trace.arrival_s) >= 0).all()
    early = trace.arrival_s < 595
    assert set(trace.client[early]) == {0} and early.sum() == pytest.approx(1200, rel=0.1)
    gaps = [np.diff(trace.arrival_s[trace.client == client]) for client in (0, 1)]
    assert gaps[0][:2000].std() / gaps[0][:2000].mean() == pytest.approx(1.0, abs=0.15)
    assert gaps[1][:2000].std() / gaps[1][:2000].mean() > 1.8
    assert trace.input_tokens.mean() == pytest.approx(250, rel=0.03) and set(trace.output_tokens) == {7}
    assert len(load_trace(str(folder), requests=50)) == 50 and len(load_trace(str(folder))) == 1000


def test_draws_depend_on_the_seed(folder):
    one, two, other = (load_trace(str(folder), seed=seed, requests=100) for seed in (1, 1, 2))
    assert (one.arrival_s == two.arrival_s).all() and (one.arrival_s != other.arrival_s).any()


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("chunk-0-trace.csv", "0,2.0,1,Gamma\n", "line 1 is '0,2.0,1,Gamma'"),
        ("chunk-0-trace.csv", "0,2.0,1,Gama,1,1\n", "family 'Gama' in line 1"),
        ("chunk-0-trace.csv", "0,-2.0,1,Gamma,1,1\n", "rate -2.0"),
        ("chunk-0-trace.csv", "", "no window"),
        ("chunk-0-dataset.json", "[]", "probabilities of input_tokens"),
        ("chunk-0-dataset.json", '{"0": {"input_tokens": "{5: 1}"}}', "output_tokens"),
        ("chunk-0-dataset.json", "{}", "no lengths"),
        ("chunk-0-dataset.json", None, "no such file"),
    ],
)
def test_bad_files_are_one_sentence(folder, file, content, says):
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(FroudeError, match=says) as found:
        load_trace(str(folder))
    assert "\n" not in str(found.value)
