"""Runs as users start them: a command, a directory, an interruption, a death."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from froude.core.errors import FroudeError, InvalidValueError
from froude.runtime.train.compare import check_run
from froude.runtime.train.run import run_train, threads_per_rank
from froude.training.plan import Job, Layout, TechniqueUse, TrainPlan

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
DEVICE = """
name: box
peak_flops: {fp32: 60.0e9, bf16: 60.0e9}
memory_bytes: 12.0e9
memory_bandwidth: 15.0e9
devices_per_node: 2
scaleup_domain: 2
scaleup_bandwidth: 1.0e9
confidence: measured
measured: {gemm_flops: 60.0e9, memory_bandwidth: 15.0e9, launch_s: 5.0e-6}
"""


def make_plan(folder: Path, **changes) -> TrainPlan:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "box.yaml").write_text(DEVICE)
    job = {"seq_len": 16, "global_batch_tokens": 64, "precision": "fp32", **changes.pop("job", {})}
    layout = Layout(**{"data_parallel": 2, **changes.pop("layout", {})})
    return TrainPlan(
        model=str(folder / "config.json"),
        cluster=f"profile:{folder / 'box.yaml'}:{layout.devices}",
        job=Job(**job),
        layout=layout,
        stack="torch-eager",
        **changes,
    )


def froude(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "froude.cli", *map(str, arguments)]


def rows_of(directory: Path) -> list[dict[str, str]]:
    with (directory / "steps.csv").open() as file:
        return list(csv.DictReader(file))


def ranks_of(parent: int) -> list[int]:
    """Processes whose parent is ``parent``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.05)


def test_a_run_leaves_a_directory_that_can_be_checked(tmp_path):
    plan = make_plan(tmp_path)
    seen = []
    run = run_train(plan, steps=5, out=tmp_path / "run", on_step=lambda row, left: seen.append(left))
    assert run.status == "finished"
    assert seen == [4, 3, 2, 1, 0]
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["warm_up"] for row in rows] == ["1", "1", "0", "0", "0"]
    assert rows[1]["peak_bytes_0"]
    assert rows[1]["peak_bytes_1"]
    assert not rows[2]["peak_bytes_0"]
    assert int(rows[0]["rss_bytes_0"]) > 1e7
    assert TrainPlan.read(tmp_path / "run" / "plan.yaml") == plan
    meta = json.loads((tmp_path / "run" / "meta.json").read_text())
    assert meta["machine"]["cores"] >= 1
    times = sorted(float(row["step_s"]) for row in rows[2:])
    assert meta["measured_step_s"] == pytest.approx(times[1])
    events = json.loads((tmp_path / "run" / "timeline.json").read_text())["traceEvents"]
    names = {e["name"] for e in events if e["ph"] == "X"}
    assert {"forward 0", "backward 1", "optimizer 0"} <= names
    check = check_run(tmp_path)  # one run in a directory of runs
    assert check.runs[0]["name"] == "run"
    assert check.median_ape == pytest.approx(abs(run.predicted_step_s / run.measured_step_s - 1))
    assert check.rank_spearman is None
    assert check_run(tmp_path / "run").runs == check.runs


def test_interrupting_leaves_whole_files_and_no_processes(tmp_path):
    make_plan(tmp_path).write(tmp_path / "plan.yaml")
    out = tmp_path / "run"
    command = froude("run", "train", tmp_path / "plan.yaml", "--steps", 100000, "--out", out)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (out / "steps.csv").exists() and len((out / "steps.csv").read_text().splitlines()) > 5)
        ranks = ranks_of(process.pid)
        assert len(ranks) == 2
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 10)
    assert json.loads((out / "meta.json").read_text())["status"] == "interrupted"
    assert json.loads((out / "timeline.json").read_text())["traceEvents"]
    rows = rows_of(out)
    assert all(float(row["loss"]) > 0 for row in rows)
    assert check_run(out).runs


def test_a_killed_rank_ends_the_command_with_one_sentence(tmp_path):
    make_plan(tmp_path).write(tmp_path / "plan.yaml")
    out = tmp_path / "run"
    command = froude("run", "train", tmp_path / "plan.yaml", "--steps", 100000, "--out", out)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (out / "steps.csv").exists() and len((out / "steps.csv").read_text().splitlines()) > 3)
        ranks = sorted(ranks_of(process.pid))
        os.kill(ranks[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 2
    sentence = stderr.strip().splitlines()
    assert len(sentence) == 1
    assert "rank 1 died" in sentence[0]
    assert "SIGKILL" in sentence[0]
    wait_for(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 10)
    assert json.loads((out / "meta.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"job": {"precision": "fp8"}}, "job.precision: 'fp8' does not run here"),
        ({"layout": {"context_parallel": 2}}, "context_parallel: 2 does not run here"),
        ({"layout": {"zero_stage": 3, "pipeline_parallel": 2}}, "zero_stage: 3 runs with data parallelism alone"),
        (
            {"layout": {"zero_stage": 3, "schedule": "breadth-first"}},
            "layout.schedule: 'breadth-first' keeps weights whole",
        ),
        ({"layout": {"virtual_stages": 2, "schedule": "breadth-first"}}, "virtual_stages: 2 runs in a pipeline alone"),
        ({"job": {"global_batch_tokens": 48}}, "global_batch_tokens: 48 .* nearest is 64"),
        ({"techniques": (TechniqueUse(name="zero-plus-plus"),)}, "techniques: 'zero-plus-plus'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, changes, sentence):
    with pytest.raises(InvalidValueError, match=sentence):
        run_train(make_plan(tmp_path, **changes), steps=3, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_this_machine_cannot_hold_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match="layout: '512 devices'"):
        run_train(make_plan(tmp_path, layout={"data_parallel": 512}, job={"global_batch_tokens": 16 * 512}), steps=3)
    plan = make_plan(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 10**6, "hidden_size": 8192}))
    with pytest.raises(FroudeError, match=r"cannot fit: 2 ranks of this layout need \d+\.\d GiB"):
        run_train(plan, steps=3)


def test_too_few_steps_and_missing_data_are_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"steps: 2 are too few.* 3"):
        run_train(make_plan(tmp_path), steps=2)
    with pytest.raises(FroudeError, match="no such file"):
        run_train(make_plan(tmp_path), data=str(tmp_path / "nothing.txt"))


def test_a_rank_uses_what_the_profile_measured(tmp_path):
    alone = make_plan(tmp_path, layout={"data_parallel": 1})
    assert threads_per_rank(alone) == threads_per_rank(make_plan(tmp_path))


def write_meta(folder: Path, predicted: float, measured: float | None) -> None:
    folder.mkdir(parents=True)
    meta = {
        "name": folder.name,
        "status": "finished" if measured else "failed",
        "predicted_step_s": predicted,
        "measured_step_s": measured,
        "predicted_bytes": 1e6,
        "measured_bytes": 2e6,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def test_check_run_summarises_several_runs(tmp_path):
    for name, predicted, measured in (("a", 1.0, 1.1), ("b", 2.0, 1.6), ("c", 3.0, 4.0), ("d", 1.0, None)):
        write_meta(tmp_path / name, predicted, measured)
    check = check_run(tmp_path)
    assert [run["name"] for run in check.runs] == ["a", "b", "c"]
    assert check.median_ape == pytest.approx(0.25)
    assert check.worst_ape == pytest.approx(0.25)
    assert check.rank_spearman == pytest.approx(1.0)
    assert check.skipped[0]["name"] == "d"


def test_check_run_refuses_what_is_no_run(tmp_path):
    with pytest.raises(FroudeError, match="no such directory"):
        check_run(tmp_path / "nothing")
    with pytest.raises(FroudeError, match=r"holds no meta\.json"):
        check_run(tmp_path)
    (tmp_path / "meta.json").write_text('{"name": "x"')
    with pytest.raises(FroudeError, match=r"not a run's meta\.json"):
        check_run(tmp_path)
    (tmp_path / "meta.json").write_text('{"name": "x"}')
    with pytest.raises(FroudeError, match="predicted_step_s: missing"):
        check_run(tmp_path)
