"""``python -m sglang.launch_server``: starts one replica of a deployment; and such a command read back.

With attention split over data-parallel groups SGLang's ``--tp-size`` counts all the devices of the replica.
Source: SGLang server arguments, https://docs.sglang.ai/advanced_features/server_arguments.html.
"""

from __future__ import annotations

from typing import Any

from froude.core.errors import InvalidValueError
from froude.exports.command import Flag, Launcher, Switch
from froude.serving.deployment import Deployment


class _SgLang(Launcher):
    def values(self, deployment: Deployment) -> dict[str, Any]:
        """As of every engine, devices counted as SGLang does."""
        values = super().values(deployment)
        groups = deployment.data_parallel
        return {**values, "devices": deployment.tensor_parallel * groups, "apart": groups > 1}

    def read(self, command: Any) -> dict[str, Any]:
        """As of every engine.

        Raises:
            FroudeError: also for ``--dp-size`` without ``--enable-dp-attention``, which starts replicas.
        """
        found = super().read(command)
        groups, devices = found.get("data_parallel", 1), found.pop("devices", 1)
        if not found.pop("apart", False):
            if groups > 1:
                found["replicas"] = found.pop("data_parallel")
            groups = 1
        if devices % groups:
            raise InvalidValueError("--dp-size", groups, f"does not divide --tp-size {devices}")
        return {**found, "tensor_parallel": devices // groups}


SGLANG = _SgLang(
    engine="sglang",
    program=("python", "-m", "sglang.launch_server"),
    model_flag="--model-path",
    flags=(
        Flag("--tp-size", "devices", int, always=True),
        Flag("--dp-size", "data_parallel", int),
        Flag("--pp-size", "pipeline_parallel", int),
        Flag("--ep-size", "expert_parallel", int),
        Flag("--max-running-requests", "max_seqs", int, always=True),
        Flag("--chunked-prefill-size", "chunk_tokens", int, always=True),
        Flag("--mem-fraction-static", "gpu_memory_utilization", float, always=True),
        Flag("--quantization", "precision", str, {"fp8": "fp8", "w8a8_int8": "w8a8", "modelopt_fp4": "nvfp4"}),
        Flag("--kv-cache-dtype", "kv_dtype", str, {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8"}),
    ),
    switches=(
        Switch("--enable-dp-attention", {"apart": True}),
        Switch("--disable-radix-cache", {"prefix_cache": False}),
    ),
    schedulers=("vllm-v0",),
    image="lmsysorg/sglang:latest",
    port=30000,
    aliases={
        "--tp": "--tp-size",
        "--tensor-parallel-size": "--tp-size",
        "--dp": "--dp-size",
        "--data-parallel-size": "--dp-size",
        "--ep": "--ep-size",
        "--expert-parallel-size": "--ep-size",
    },
)
