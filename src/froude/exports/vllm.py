"""``vllm serve``: the command that starts one replica of a deployment, and such a command read back.

Source: vLLM engine arguments, https://docs.vllm.ai/en/stable/configuration/engine_args.html.
"""

from __future__ import annotations

import shlex
from typing import Any

from froude.core.errors import FroudeError, InvalidValueError
from froude.serving.api import Deployment

_FLAGS = {
    "--tensor-parallel-size": ("tensor_parallel", int),
    "--max-num-seqs": ("max_seqs", int),
    "--max-num-batched-tokens": ("chunk_tokens", int),
    "--gpu-memory-utilization": ("gpu_memory_utilization", float),
}
"""vLLM's argument -> the argument of `froude.simulate_serve`, and its type."""
_SHORT = {"-tp": "--tensor-parallel-size"}
SCHEDULERS = ("vllm-v1", "sarathi-serve")  # decode first, chunked prompts: what vLLM V1 does


def vllm_command(deployment: Deployment) -> list[str]:
    """Arguments that start one replica of the deployment.

    Raises:
        FroudeError: for a scheduler that vLLM does not have.
    """
    scheduler = deployment.scheduler
    if scheduler.name not in SCHEDULERS:
        raise InvalidValueError("scheduler", scheduler.name, f"is not in vLLM; {' and '.join(SCHEDULERS)} are")
    values = {
        "--tensor-parallel-size": deployment.tensor_parallel,
        "--max-num-seqs": scheduler.max_seqs,
        "--max-num-batched-tokens": scheduler.max_batched_tokens,
        "--gpu-memory-utilization": deployment.pool.memory_fraction,
    }
    prefix = "--enable-prefix-caching" if deployment.prefix_cache else "--no-enable-prefix-caching"
    return ["vllm", "serve", deployment.arch.name, *(x for kv in values.items() for x in map(str, kv)), prefix]


def read_vllm(command: str | list[str]) -> dict[str, Any]:
    """Arguments of `froude.simulate_serve` from a ``vllm serve`` command; arguments that do not matter are passed over.

    Raises:
        FroudeError: when it is no such command, or a value is no number.
    """
    words = shlex.split(command) if isinstance(command, str) else list(command)
    try:
        start = next(i for i, w in enumerate(words) if w.rpartition("/")[2] == "vllm" and words[i + 1] == "serve")
    except (StopIteration, IndexError):
        raise FroudeError(f"command: {shlex.join(words)!r} is no `vllm serve MODEL ...`") from None
    found: dict[str, Any] = {"engine": "vllm"}
    rest = words[start + 2 :]
    if rest and not rest[0].startswith("-"):
        found["model"] = rest[0]
    for at, word in enumerate(rest):
        flag, equals, value = word.partition("=")
        flag = _SHORT.get(flag, flag)
        if flag == "--model":
            found["model"] = value if equals else rest[at + 1]
        elif flag == "--enable-prefix-caching":
            found["prefix_cache"] = True
        elif flag == "--no-enable-prefix-caching":
            found["prefix_cache"] = False
        elif flag in _FLAGS:
            name, kind = _FLAGS[flag]
            text = value if equals else "".join(rest[at + 1 : at + 2])
            try:
                found[name] = kind(text)
            except ValueError:
                raise InvalidValueError(flag, text, "is not a number") from None
    if "model" not in found:
        raise FroudeError(f"command: {shlex.join(words)!r} names no model")
    return found
