"""``trtllm-serve``: the command that starts one replica of a deployment, and such a command read back.

Attention over data-parallel groups and the type of the cache are set in a YAML file of options, which is written beside
the command: see `options`.
Source: TensorRT-LLM, trtllm-serve, https://nvidia.github.io/TensorRT-LLM/commands/trtllm-serve/trtllm-serve.html.
"""

from __future__ import annotations

from typing import Any

from froude.exports.command import Flag, Launcher
from froude.serving.deployment import Deployment


class _TensorRtLlm(Launcher):
    def values(self, deployment: Deployment) -> dict[str, Any]:
        """As of every engine; ``--tp_size`` counts all the devices of the replica."""
        return {**super().values(deployment), "devices": deployment.tensor_parallel * deployment.data_parallel}

    def read(self, command: Any) -> dict[str, Any]:
        """As of every engine."""
        found = super().read(command)
        found["tensor_parallel"] = found.pop("devices", 1)
        return found


TENSORRT_LLM = _TensorRtLlm(
    engine="tensorrt-llm",
    program=("trtllm-serve",),
    model_flag=None,
    flags=(
        Flag("--tp_size", "devices", int, always=True),
        Flag("--pp_size", "pipeline_parallel", int),
        Flag("--ep_size", "expert_parallel", int),
        Flag("--max_batch_size", "max_seqs", int, always=True),
        Flag("--max_num_tokens", "chunk_tokens", int, always=True),
        Flag("--kv_cache_free_gpu_memory_fraction", "gpu_memory_utilization", float, always=True),
    ),
    switches=(),
    schedulers=("tensorrt-llm",),
    image="nvcr.io/nvidia/tensorrt-llm/release:latest",
    port=8000,
    aliases={},
)


def options(deployment: Deployment) -> dict[str, Any]:
    """The file for ``--extra_llm_api_options``: what the command line has no flag for."""
    cache: dict[str, Any] = {"enable_block_reuse": deployment.prefix_cache}
    if deployment.engine.kv_dtype != "auto":
        cache["dtype"] = {"bf16": "auto"}.get(deployment.engine.kv_dtype, deployment.engine.kv_dtype)
    found: dict[str, Any] = {"enable_chunked_prefill": True, "kv_cache_config": cache}
    if deployment.data_parallel > 1:
        found["enable_attention_dp"] = True
    return found
