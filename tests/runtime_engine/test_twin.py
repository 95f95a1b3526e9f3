"""Prediction and reality by turns, on a tiny model; vLLM and replicas where they can be had."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from froude.core.errors import FroudeError
from froude.runtime.engine import twin
from froude.runtime.engine.api import check_requests, run_serve
from froude.runtime.engine.spec import ServeSpec

TINY = {"name": "tiny", "layers": 2, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 128, "vocab": 256}
WIDE = {**TINY, "heads": 2}  # heads as wide as vLLM wants them
SPEC = {"model": TINY, "trace": "lognormal:in=40,out=8,cv=0.5", "rate": 30, "requests": 16, "calibration_s": 0.4}


def spec(out: Path, **change: object) -> ServeSpec:
    return ServeSpec.parse({**SPEC, "max_seqs": 4, "chunk_tokens": 64, "kv_blocks": 60, "out": str(out), **change})


def test_a_twin_of_every_load_and_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin, "BASE", {**twin.BASE, "model": TINY})
    monkeypatch.setattr(twin, "MIX", "lognormal:in=20,out=6,cv=0.8")
    monkeypatch.setattr(twin, "LOADS", (("low", twin.MIX, 0.3), ("long", "lognormal:in=60,out=6,cv=0.8", 0.4)))
    monkeypatch.setattr(twin, "CONTENTION", {"trace": f"{twin.MIX},clients=2", "kv_blocks": 16, "max_tokens": 40})
    found = twin.check_twin(["froude"], seconds=0.3, clock="processor").json()
    loads = found["engines"]["froude"]["loads"]
    assert set(loads) == {"low", "long"}
    # Generous: others use this machine. A wrong unit, seed or scheduler is off by far more.
    assert all(row["tpot"] < 1.0 and abs(row["throughput_error"]) < 0.3 for row in loads.values())
    assert set(found["engines"]["froude"]["schedulers"]) == {name for name, _ in twin.SCHEDULERS}
    assert -1.0 <= found["engines"]["froude"]["spearman_p99_ttft"] <= 1.0


@pytest.mark.parametrize("kind", ["block", "radix"])
def test_prefixes_are_found_for_real_and_in_the_simulator(tmp_path: Path, kind: str) -> None:
    trace = "prefixes:groups=2,prefix=64,in=20,out=6,block=16"
    run = run_serve(spec(tmp_path / "run", trace=trace, prefix_cache=kind, clock="processor"))
    rows = [json.loads(line) for line in (run.out / "requests.jsonl").read_text().splitlines()]
    assert all(len(row["hash_ids"]) == -(-row["input_toks"] // 16) for row in rows)
    computed = sum(tokens for iteration in run.log.iterations for tokens, _ in iteration.prompts)
    assert computed < 0.6 * sum(row["input_toks"] for row in rows)
    assert check_requests(run.out).json()["tpot"]["median_ape"] < 1.0


def test_swapping_for_real(tmp_path: Path) -> None:
    change = {"trace": "lognormal:in=30,out=40,cv=0.5", "rate": 200, "kv_blocks": 12, "swap_blocks": 100}
    run = run_serve(spec(tmp_path / "run", clock="processor", max_seqs=8, **change))
    assert sum(iteration.copied[1] for iteration in run.log.iterations) > 0
    check = check_requests(run.out)
    assert check.on_this_machine is not None and check.on_this_machine.preemptions[0] > 0


def test_two_replicas_behind_a_router(tmp_path: Path) -> None:
    run = run_serve(spec(tmp_path / "run", replicas=2, router="round-robin"))
    assert run.json()["completed"] == 16
    for replica in (0, 1):  # by turns
        computed = sum(tokens for it in run.log.iterations if it.replica == replica for tokens, _ in it.prompts)
        assert computed == sum(log.sequence.prompt_tokens for i, log in run.log.requests.items() if i % 2 == replica)
    rows = [json.loads(line) for line in (run.out / "requests.jsonl").read_text().splitlines()]
    assert all(row["arrival_time"] <= row["scheduled_ts"] < row["first_token_ts"] for row in rows)
    check = check_requests(run.out)  # by the wall clock of a machine that others may use: of the right size only
    assert 0.2 < check.throughputs[0] / check.throughputs[1] < 5.0


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself(tmp_path: Path) -> None:
    run = run_serve(spec(tmp_path / "run", engine="vllm", model=WIDE, block_tokens=32, clock="processor"))
    rows = [json.loads(line) for line in (run.out / "requests.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    assert all(len(row["token_ts"]) == row["output_toks"] for row in rows)
    computed = sum(tokens for iteration in run.log.iterations for tokens, _ in iteration.prompts)
    assert computed == sum(row["input_toks"] for row in rows)
    assert abs(check_requests(run.out).json()["throughput_error"]) < 0.3


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FroudeError, match="vllm is not installed"):
        run_serve(spec(tmp_path / "run", engine="vllm", model=WIDE, block_tokens=32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": "vllm", "scheduler": "orca"}, "scheduler of its own"),
        ({"engine": "vllm", "block_tokens": 16}, "multiple of 32"),
        ({"prefix_cache": "block", "swap_blocks": 4}, "exclude"),
        ({"replicas": 2, "clock": "processor"}, "wall clock"),
        ({"router": "round-robbin"}, "round-robin"),
    ],
)
def test_what_cannot_be_combined(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(FroudeError, match=words) as error:
        run_serve(spec(tmp_path / "run", **change))
    assert "\n" not in str(error.value)
