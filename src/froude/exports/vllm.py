"""``vllm serve``: the command that starts one replica of a deployment, and such a command read back.

Source: vLLM engine arguments, https://docs.vllm.ai/en/stable/configuration/engine_args.html.
"""

from __future__ import annotations

from typing import Any

from froude.exports.command import Flag, Launcher, Switch
from froude.serving.deployment import Deployment


class _Vllm(Launcher):
    """Expert parallelism is a switch: over all the devices of a replica, or none."""

    def values(self, deployment: Deployment) -> dict[str, Any]:
        """As of every engine, with the switch."""
        values = super().values(deployment)
        return {**values, "spread": deployment.expert_parallel > 1}

    def offloaded(self, deployment: Deployment) -> float | None:
        """As of every engine; one tier, host memory, is a flag."""
        if deployment.tiers is None or len(deployment.tiers.tiers) > 1:
            return super().offloaded(deployment)
        return deployment.tiers.tiers[0].tokens * deployment.token_bytes / 2**30

    def read(self, command: Any) -> dict[str, Any]:
        """As of every engine; experts spread over all devices are that many."""
        found = super().read(command)
        if found.pop("spread", False):
            found["expert_parallel"] = found.get("tensor_parallel", 1) * found.get("data_parallel", 1)
        return found


def _host_tier(gibibytes: str) -> str:
    """``--kv-offloading-size``, of all ranks together, as ``--kv-tiers`` has it."""
    return f"host={float(gibibytes):g}GiB"


VLLM = _Vllm(
    engine="vllm",
    program=("vllm", "serve"),
    model_flag=None,
    flags=(
        Flag("--tensor-parallel-size", "tensor_parallel", int, always=True),
        Flag("--data-parallel-size", "data_parallel", int),
        Flag("--pipeline-parallel-size", "pipeline_parallel", int),
        Flag("--max-num-seqs", "max_seqs", int, always=True),
        Flag("--max-num-batched-tokens", "chunk_tokens", int, always=True),
        Flag("--gpu-memory-utilization", "gpu_memory_utilization", float, always=True),
        Flag("--quantization", "precision", str, {"fp8": "fp8", "awq": "w4a16", "gptq": "w4a16"}),
        Flag("--kv-cache-dtype", "kv_dtype", str, {"fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}),
        Flag("--kv-offloading-size", "kv_tiers", _host_tier),
    ),
    switches=(
        Switch("--enable-expert-parallel", {"spread": True}),
        Switch("--enable-prefix-caching", {"prefix_cache": True}),
        Switch("--no-enable-prefix-caching", {"prefix_cache": False}),
    ),
    # Decode first, chunked prompts: what vLLM V1 does.
    schedulers=("vllm-v1", "sarathi-serve"),
    image="vllm/vllm-openai:latest",
    port=8000,
    aliases={
        "-tp": "--tensor-parallel-size",
        "-pp": "--pipeline-parallel-size",
        "-dp": "--data-parallel-size",
        "-q": "--quantization",
    },
)
