"""Attention of decoding: proportional to sequences and to keys, bound by arithmetic where all heads share the keys."""

from dataclasses import replace

import pytest

from froude.machines.device import find_device
from froude.models.operator import Attention, LatentAttention
from froude.timing.constants import default_constants
from froude.timing.decoding import DecodeKernel


def grouped(sequences, keys, kv_heads=8, dtype="bf16"):
    return Attention(
        name="attention", dtype=dtype, tokens=sequences, pairs=keys, context=keys, heads=32, kv_heads=kv_heads,
        head_dim=128,
    )  # fmt: skip


def test_many_short_sequences_cost_more_than_their_traffic():
    """vLLM's kernel on an H100 (aiconfigurator-core 0.12.0) is of this order: 32 heads of keys, 2.6 us of a block."""
    kernel = DecodeKernel(find_device("h100-sxm"), default_constants())
    few, many = (float(kernel.seconds(grouped(n, 65536, kv_heads=32), n)) for n in (8, 512))
    assert many - few == pytest.approx(504 * 32 * 2.6e-6 / 132, rel=0.2)


def test_a_narrow_cache_saves_less_than_half():
    kernel = DecodeKernel(find_device("h200-sxm"), default_constants())
    wide, narrow = (float(kernel.seconds(grouped(1e-9, 1e6, dtype=dtype), 1e-9)) for dtype in ("bf16", "fp8"))
    assert 0.5 < narrow / wide < 0.9


def test_idle_rows_of_a_latent_tile_cost_as_much_as_used_ones():
    """A tensor-parallel share of 16 heads takes as long as 64; 128 heads are bound by their arithmetic."""
    kernel = DecodeKernel(find_device("h100-sxm"), default_constants())
    op = LatentAttention(
        name="attention", tokens=1e-9, pairs=1e6, context=1e6, heads=16, kv_heads=16, head_dim=544, cached=576,
        absorbed=True,
    )  # fmt: skip
    of = {heads: float(kernel.seconds(replace(op, heads=heads, kv_heads=heads), 1e-9)) for heads in (16, 64, 128)}
    assert of[16] == pytest.approx(of[64], rel=1e-6)
    assert of[128] == pytest.approx(2 * 1088 * 128e6 / (0.53 * find_device("h100-sxm").peak("bf16")), rel=1e-3)
