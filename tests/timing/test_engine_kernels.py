"""Products as serving engines' kernels run them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from froude.machines.cluster import parse_cluster
from froude.machines.device import find_device
from froude.models.operator import Matmul
from froude.timing.engine_kernels import find_decoding, find_experts, find_product, find_prompt
from froude.timing.roofline import Roofline

H100 = find_device("h100-sxm")


def test_engines_differ_and_training_does_not_know_them() -> None:
    base = Roofline(parse_cluster("h100-sxm:8")).isolated
    op = Matmul(name="up", dtype="fp8", m=4096.0, k=8192.0, n=1024.0)
    engines = ("vllm", "sglang", "tensorrt-llm")
    seconds = {
        name: float(
            np.asarray(replace(base, stack=base.stack.but(products=name, casts="separate")).operator(op).seconds)
        )
        for name in engines
    }
    assert len({round(value, 9) for value in seconds.values()}) == 3
    assert base.stack.products == "library"
    # Scaling the input costs more than the product; a library's product is told without.
    assert min(seconds.values()) > 1.4 * float(np.asarray(base.operator(op).seconds))


def test_scaling_takes_multiprocessors_not_bandwidth() -> None:
    kernel = find_product("vllm", "fp8", H100)
    assert kernel is not None
    apart = [kernel.parts(H100, m, 8192.0, 128.0).apart_s for m in (4096.0, 8192.0)]
    assert apart[1] - apart[0] == pytest.approx(4096 * 8192 * kernel.cast_s / 132)
    fast = H100.model_copy(update={"memory_bandwidth": 2 * H100.memory_bandwidth})
    assert kernel.parts(fast, 4096.0, 8192.0, 128.0).apart_s == pytest.approx(apart[0])
    assert kernel.parts(H100, 4096.0, 8192.0, 128.0, casts=False).apart_s == kernel.start_s


def test_a_row_too_many_opens_a_new_tile() -> None:
    """CUTLASS kernels of vLLM take tiles of 128 rows beyond 128 rows; a last tile without rows holds the others up."""
    kernel = find_product("vllm", "fp8", H100)
    assert kernel is not None
    one, two, full = (
        float(np.asarray(kernel.parts(H100, m, 16384.0, 8192.0).compute_s)) for m in (256.0, 257.0, 384.0)
    )
    assert two > 1.3 * one and two > full


def test_a_left_operand_beyond_the_cache_is_read_again() -> None:
    kernel = find_product("sglang", "fp8", H100)
    assert kernel is not None
    small, large = (kernel.parts(H100, m, 16384.0, 65536.0).memory_s for m in (1024.0, 16384.0))
    bytes_ = [m * 16384 + 16384 * 65536 + 2 * m * 65536 for m in (1024, 16384)]
    rate = kernel.memory * H100.memory_bandwidth
    assert small == pytest.approx(bytes_[0] / rate) and large > 2.0 * bytes_[1] / rate


def test_devices_and_formats_without_measurements_have_no_kernel() -> None:
    assert find_product("vllm", "fp8", find_device("a100-sxm-80gb")) is None
    assert find_product("library", "bf16", H100) is None
    gb200 = find_product("vllm", "fp4", find_device("gb200"))
    assert gb200 is not None and 0.3 < gb200.rate(find_device("gb200")) / find_device("gb200").peak("fp4") < 0.8


def test_experts_of_few_tokens_are_their_weights_and_of_many_their_arithmetic() -> None:
    kernel = find_experts("tensorrt-llm", "moe_torch_flow_cutlass", "bf16", H100)
    assert kernel is not None

    def seconds(tokens: float) -> float:
        shape = {"hidden": 4096.0, "width": 1536.0, "top_k": 8.0, "local": 128.0, "ways": 1.0, "gates": 2.0}
        return float(np.asarray(kernel.layer_s(H100, tokens=tokens, **shape)))

    weights = 128 * 3 * 4096 * 1536 * 2
    assert seconds(64.0) == pytest.approx(weights / 3.35e12, rel=0.25)
    flops = 16384 * 8 * 3 * 2 * 4096 * 1536
    assert 0.4 < flops / seconds(16384.0) / H100.peak("bf16") < 0.8


def test_experts_spread_over_devices_keep_their_own() -> None:
    kernel = find_experts("tensorrt-llm", "deepgemm", "fp8-block", find_device("b200-sxm"))
    assert kernel is not None
    shape = {"tokens": 8192.0, "hidden": 7168.0, "width": 2048.0, "top_k": 8.0, "gates": 2.0}
    here, spread = (
        float(np.asarray(kernel.layer_s(find_device("b200-sxm"), local=256.0 / ways, ways=ways, **shape)))
        for ways in (1.0, 8.0)
    )
    assert 4.0 < here / spread < 8.0


def test_heads_beyond_what_a_kernel_packs_read_their_keys_alone() -> None:
    kernel = find_decoding("tensorrt-llm", H100)
    assert kernel is not None and kernel.packed == 32

    def seconds(heads: float) -> float:
        shape = {"batch": 64.0, "keys": 8192.0, "kv_heads": 1.0, "head_dim": 128.0}
        return float(np.asarray(kernel.seconds(H100, heads=heads, **shape)))

    assert seconds(32.0) == pytest.approx(seconds(16.0))
    assert seconds(64.0) > 10.0 * seconds(32.0)
    streamed = 64 * 8192 * 128 * 4 / (kernel.memory * H100.memory_bandwidth)
    assert streamed < seconds(32.0) < 1.5 * streamed + kernel.start_s


def test_long_prompts_run_at_the_matrix_rate_and_short_ones_by_blocks() -> None:
    kernel = find_prompt("vllm", find_device("b200-sxm"))
    assert kernel is not None
    device = find_device("b200-sxm")

    def seconds(batch: float, queries: float) -> float:
        shape = {"heads": 32.0, "kv_heads": 8.0, "head_dim": 128.0}
        return float(np.asarray(kernel.seconds(device, batch=batch, queries=queries, **shape)))

    flops = 4 * 16384**2 / 2 * 32 * 128
    assert 0.4 < flops / seconds(1.0, 16384.0) / device.peak("bf16") < 0.8
    assert seconds(256.0, 1.0) > 0.4 * seconds(256.0, 128.0)  # a block takes what it takes
