"""Launch commands say what was simulated, and are read back."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from froude.core.errors import FroudeError
from froude.exports.launch import kubernetes, launch_command, launch_script, read_launch, unread_flags
from froude.serving.deployment import build_deployment

FROUDE = Path(sys.executable).with_name("froude")
ENGINES = ("vllm", "sglang", "tensorrt-llm")
WANTED = {"tensor_parallel": 2, "chunk_tokens": 1024, "max_seqs": 64, "gpu_memory_utilization": 0.8}


def same(one, other):
    return (
        one.pool == other.pool
        and one.engine.precision == other.engine.precision
        and (one.tensor_parallel, one.data_parallel, one.expert_parallel, one.replicas)
        == (other.tensor_parallel, other.data_parallel, other.expert_parallel, other.replicas)
        and (one.scheduler.name, one.scheduler.max_batched_tokens, one.scheduler.max_seqs)
        == (other.scheduler.name, other.scheduler.max_batched_tokens, other.scheduler.max_seqs)
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_there_and_back(engine):
    built = build_deployment("llama-3.1-8b", "h100-sxm:2", engine=engine, **WANTED)
    read = read_launch(launch_script(built))
    assert read.pop("model") == built.arch.name
    assert same(built, build_deployment(built.arch, "h100-sxm:2", **read))


@pytest.mark.parametrize("engine", ENGINES)
def test_experts_over_groups_that_attend_apart(engine):
    built = build_deployment(
        "qwen3-30b-a3b", "h100-sxm:4", engine=engine, tensor_parallel=2, data_parallel=2, expert_parallel=4
    )
    read = read_launch(launch_script(built))
    if engine == "tensorrt-llm":  # attention apart is in its file of options, which the command only names
        assert read["tensor_parallel"] == 4 and "enable_attention_dp: true" in launch_script(built)
        return
    read.pop("model")
    assert same(built, build_deployment(built.arch, "h100-sxm:4", **read))


@pytest.mark.parametrize("engine", ENGINES)
def test_stages(engine):
    built = build_deployment("llama-3.1-8b", "h100-sxm:4", engine=engine, tensor_parallel=2, pipeline_parallel=2)
    read = read_launch(launch_script(built))
    assert (read["tensor_parallel"], read["pipeline_parallel"]) == (2, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_kubernetes_there_and_back(engine, tmp_path):
    built = build_deployment("llama-3.1-8b", "h100-sxm:6", engine=engine, replicas=3, **WANTED)
    path = tmp_path / "deployment.yaml"
    path.write_text(kubernetes(built))
    objects = list(yaml.safe_load_all(path.read_text()))
    assert [o["kind"] for o in objects][-2:] == ["Deployment", "Service"]
    container = objects[-2]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 2
    read = read_launch(path)
    read.pop("model")
    assert same(built, build_deployment(built.arch, "h100-sxm:6", **read))


def test_precisions_are_said_in_the_engines_words():
    built = build_deployment("llama-3.1-8b", "h100-sxm:1", precision="fp8", kv_dtype="fp8")
    words = launch_command(built)
    assert words[words.index("--quantization") + 1] == "fp8" and words[words.index("--kv-cache-dtype") + 1] == "fp8"
    read = read_launch(" ".join(words))
    assert (read["precision"], read["kv_dtype"]) == ("fp8", "fp8")


@pytest.mark.parametrize(
    ("command", "read"),
    [
        (
            "CUDA_VISIBLE_DEVICES=0 vllm serve --model=org/m -tp 4 --max-num-seqs=32 --port 8000",
            {"engine": "vllm", "model": "org/m", "tensor_parallel": 4, "max_seqs": 32},
        ),
        (
            "python3 -m sglang.launch_server --model-path org/m --tp 8 --dp 4 --enable-dp-attention",
            {"engine": "sglang", "model": "org/m", "tensor_parallel": 2, "data_parallel": 4},
        ),
        (
            "python -m sglang.launch_server \\\n --model-path org/m --tp 2 --dp 4",
            {"engine": "sglang", "model": "org/m", "tensor_parallel": 2, "replicas": 4},
        ),
        (
            "#!/bin/sh\nset -e\ntrtllm-serve org/m --tp_size 4 --max_num_tokens 4096  # half a node\n",
            {"engine": "tensorrt-llm", "model": "org/m", "tensor_parallel": 4, "chunk_tokens": 4096},
        ),
    ],
)
def test_as_people_write_it(command, read):
    assert read_launch(command) == read


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("ollama run m", "no engine's command"),
        ("vllm serve --port 1", "names no model"),
        ("vllm serve m -tp two", "'two' is not a number"),
        ("python -m sglang.launch_server --model m --tp 3 --dp 2 --enable-dp-attention", "does not divide"),
    ],
)
def test_what_cannot_be_read(command, says):
    with pytest.raises(FroudeError, match=says):
        read_launch(command)


def test_host_memory_below_the_prefix_cache():
    built = build_deployment("llama-3.1-8b", "h100-sxm:2", tensor_parallel=2, kv_tiers="host=64GiB")
    assert "--kv-offloading-size 64" in launch_script(built)
    again = build_deployment(cluster="h100-sxm:2", **read_launch(launch_script(built)))
    assert again.tiers == built.tiers and again.prefix_cache


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"kv_tiers": "host=64GiB,disk=1TB@5GB/s"}, "kv_tiers: 'host, disk' cannot be said"),
        ({"engine": "sglang", "kv_tiers": "host=64GiB"}, "kv_tiers"),
        ({"prefix_cache": "radix"}, "prefixes: 'radix' is not the prefix cache of vllm; block is"),
        ({"eviction": "fifo"}, "eviction"),
    ],
)
def test_a_prefix_cache_that_the_engine_does_not_have(how, says):
    with pytest.raises(FroudeError, match=says):
        launch_command(build_deployment("llama-3.1-8b", "h100-sxm:1", **how))


def test_a_scheduler_that_the_engine_does_not_have():
    with pytest.raises(FroudeError, match="orca"):
        launch_command(build_deployment("llama-3.1-8b", "h100-sxm:1", scheduler="orca"))


def test_a_command_is_simulated_and_flags_overrule_it(tmp_path):
    launch = "vllm serve llama-3.1-8b --tensor-parallel-size 2 --max-num-seqs 32"
    command = ["simulate", "serve", "--cluster", "h100-sxm:4", "--launch", launch]
    load = ["--trace", "constant:in=100,out=10", "--requests", "20", "--rate", "5"]
    run = subprocess.run([FROUDE, *command, *load, "--replicas", "2"], capture_output=True, text=True)
    assert run.returncode == 0 and "h100" in run.stdout
    none = subprocess.run([FROUDE, *command[:-2], *load], capture_output=True, text=True)
    assert none.returncode == 2 and "--model" in none.stderr


def test_flags_that_are_not_read_are_said():
    launch = "vllm serve llama-3.1-8b --tensor-parallel-size 2 --enforce-eager --max-model-len=4096"
    assert unread_flags(launch) == ("--enforce-eager", "--max-model-len")
    for engine in ("vllm", "sglang"):
        written = launch_command(build_deployment("llama-3.1-8b", "h100-sxm:1", engine=engine))
        assert not unread_flags(shlex.join(written))
