"""Launch commands say what was simulated, and are read back."""

from __future__ import annotations

import shlex

import pytest

from froude.core.errors import FroudeError
from froude.exports.vllm import read_vllm, vllm_command
from froude.serving.api import build_deployment


def test_there_and_back():
    built = build_deployment(
        "llama-3.1-8b",
        "h100-sxm:2",
        tensor_parallel=2,
        chunk_tokens=512,
        max_seqs=64,
        gpu_memory_utilization=0.8,
        prefix_cache=True,
    )
    read = read_vllm(shlex.join(vllm_command(built)))
    assert read.pop("model") == built.arch.name
    again = build_deployment(built.arch, "h100-sxm:2", **read)
    assert again.tensor_parallel == 2 and again.prefix_cache and again.pool == built.pool
    assert (again.scheduler.max_batched_tokens, again.scheduler.max_seqs) == (512, 64)


def test_as_people_write_it():
    read = read_vllm("CUDA_VISIBLE_DEVICES=0 vllm serve --model=org/m -tp 4 --max-num-seqs=32 --port 8000")
    assert read == {"engine": "vllm", "model": "org/m", "tensor_parallel": 4, "max_seqs": 32}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sglang serve m", "no `vllm serve"),
        ("vllm serve --port 1", "names no model"),
        ("vllm serve m -tp two", "'two' is not a number"),
    ],
)
def test_what_cannot_be_read(command, says):
    with pytest.raises(FroudeError, match=says):
        read_vllm(command)


def test_a_scheduler_that_vllm_does_not_have():
    with pytest.raises(FroudeError, match="orca"):
        vllm_command(build_deployment("llama-3.1-8b", "h100-sxm:1", scheduler="orca"))
