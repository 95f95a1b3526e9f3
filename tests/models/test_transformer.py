from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from froude.models.architecture import Architecture
from froude.models.catalogue import resolve
from froude.models.operator import Attention, GroupedMatmul, Matmul, Operator
from froude.models.transformer import (
    activation_tensors,
    attended_pairs,
    embedding_operators,
    head_activation_tensors,
    head_operators,
    layer_operators,
    layer_pairs,
    ragged_layer_operators,
    read_context,
)

GPT3 = resolve("megatron/gpt-175b")
LLAMA = resolve("llama-3.1-8b")
MIXTRAL = resolve("mixtral-8x7b")


def matmul_flops(operators: list[Operator]) -> float:
    return sum(float(op.flops) for op in operators if isinstance(op, (Matmul, Attention)))


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "gpt2", "qwen3-8b", "mixtral-8x7b", "qwen3-30b-a3b", "mistral-7b", "gpt-oss-20b"]
)
@pytest.mark.parametrize("seq_len", [1, 512, 8192])
def test_operators_and_model_flops_agree(name: str, seq_len: int) -> None:
    arch = resolve(name)
    layer = matmul_flops(layer_operators(arch, batch=1, queries=seq_len))
    head = matmul_flops(head_operators(arch, tokens=seq_len))
    assert arch.layers * layer + head == pytest.approx(seq_len * arch.flops_per_token(seq_len), rel=1e-9)


def test_latent_attention_in_prefill() -> None:
    # Dense and mixture layers of DeepSeek-V3, keys and values expanded, against the convention of `flops_per_token`.
    arch, seq_len = resolve("deepseek-v3"), 4096
    assert arch.experts is not None
    dense = matmul_flops(layer_operators(arch, batch=1, queries=seq_len, dense=True))
    mixture = matmul_flops(layer_operators(arch, batch=1, queries=seq_len))
    head = matmul_flops(head_operators(arch, tokens=seq_len))
    total = arch.experts.dense_layers * dense + arch.moe_layers * mixture + head
    assert total == pytest.approx(seq_len * arch.flops_per_token(seq_len), rel=1e-9)


def test_latent_attention_in_decoding_reads_latents() -> None:
    # DeepSeek-V2: the cache holds 576 channels a token and layer; 128 heads read the same ones.
    arch, keys = resolve("deepseek-v3"), 10_000
    step = layer_operators(arch, batch=4, queries=1, prefix=keys - 1)
    core = next(op for op in step if isinstance(op, Attention))
    assert core.flops == 2 * 4 * keys * 128 * (576 + 512)
    assert core.bytes_read == pytest.approx(4 * keys * 576 * 2, rel=0.02)
    assert arch.kv_bytes_per_token() == 61 * 576 * 2
    assert arch.kv_bytes_per_token(tensor_parallel=8) == arch.kv_bytes_per_token()
    halves = core.shard({"heads": 2, "kv_heads": 2})
    assert halves.flops * 2 == core.flops
    assert halves.bytes_read > 0.98 * core.bytes_read  # every rank reads all latents


def test_alternating_windows_average_over_layers() -> None:
    arch = resolve("gpt-oss-120b")
    pairs = layer_pairs(arch, 1, 9_999)
    assert pairs == (128 + 10_000) / 2
    assert arch.mean_keys(1000) == pytest.approx(float(layer_pairs(arch, 1000)) / 1000)


def test_backward_matmuls_cost_twice_forward() -> None:
    forward = [op for op in layer_operators(LLAMA, batch=2, queries=128) if isinstance(op, Matmul)]
    backward = [back for op in forward for back in op.backward()]
    assert sum(op.flops for op in backward) == pytest.approx(2 * sum(op.flops for op in forward))


def test_layer_order_and_weights() -> None:
    operators = layer_operators(LLAMA, batch=1, queries=16)
    assert [op.name for op in operators] == [
        "input-norm",
        "qkv",
        "rotary",
        "attention",
        "attention-out",
        "attention-residual",
        "mlp-norm",
        "mlp-up",
        "mlp-activation",
        "mlp-down",
        "mlp-residual",
    ]
    weights = sum(op.k * op.n for op in operators if isinstance(op, Matmul))
    assert weights == LLAMA.layer_parameters - LLAMA.norm_parameters


AXES = ["heads", "ffn", "vocab", "tokens", "sequence", "expert_ffn", "expert_tokens"]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([GPT3, LLAMA, MIXTRAL, resolve("qwen3-30b-a3b")]),
    st.sampled_from(AXES),
    st.sampled_from([2, 4, 8]),
    st.integers(1, 8),
    st.sampled_from([256, 1024]),
)
def test_sharding_conserves_work(arch: Architecture, axis: str, ways: int, batch: int, queries: int) -> None:
    tokens = batch * queries
    operators = [
        *embedding_operators(arch, tokens=tokens),
        *layer_operators(arch, batch=batch, queries=queries),
        *head_operators(arch, tokens=tokens),
    ]
    split = {axis: ways, "kv_heads": ways} if axis == "heads" else {axis: ways}
    for op in operators:
        part = op.shard(split)
        ratio = ways if any(axis in ((a,) if isinstance(a, str) else a) for a in op.axes.values()) else 1
        assert part.flops * ratio == pytest.approx(op.flops, rel=1e-9)
        # Bytes never grow when work is split, and no byte is lost.
        assert part.bytes_read <= op.bytes_read * (1 + 1e-9)
        assert part.bytes_read * ratio >= op.bytes_read * (1 - 1e-9)
        assert part.bytes_written * ratio >= op.bytes_written * (1 - 1e-9)


def test_sharding_over_two_axes_of_one_dimension() -> None:
    norm = layer_operators(LLAMA, batch=1, queries=1024)[0]
    assert norm.shard({"tokens": 4, "sequence": 2}).flops * 8 == norm.flops


@given(st.integers(1, 512), st.sampled_from([1, 2, 4, 8]))
def test_experts_spread_weights_and_keep_flops(tokens: int, hosts: int) -> None:
    arch = MIXTRAL
    up = next(
        op
        for op in ragged_layer_operators(arch, tokens=tokens, pairs=tokens, context=tokens)
        if isinstance(op, GroupedMatmul)
    )
    assert arch.experts is not None
    assert up.m * up.batch == pytest.approx(tokens * arch.experts.top_k)
    part = up.shard({"expert": hosts})
    assert part.flops == pytest.approx(up.flops)
    assert part.batch <= arch.experts.count / hosts + 1e-9
    # All ranks' tokens meet this rank's experts: as many experts are visited as when one rank had all those tokens.
    alone = GroupedMatmul.routed(name="x", tokens=tokens * hosts, experts=8, top_k=2, k=up.k, n=up.n)
    assert part.batch * hosts == pytest.approx(alone.batch)


def test_one_token_visits_top_k_experts() -> None:
    up = GroupedMatmul.routed(name="x", tokens=1, experts=8, top_k=2, k=4, n=4)
    assert (up.batch, up.m) == (pytest.approx(2), pytest.approx(1))


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 300), st.integers(0, 300))
def test_monotone_in_batch_and_vectorised(batch: int, queries: int, prefix: int) -> None:
    arrays = layer_operators(LLAMA, batch=np.array([batch, batch + 1]), queries=queries, prefix=prefix)
    single = layer_operators(LLAMA, batch=batch, queries=queries, prefix=prefix)
    for many, one in zip(arrays, single, strict=True):
        assert many.flops[0] == pytest.approx(one.flops)
        assert many.flops[1] > many.flops[0]
        assert many.bytes_read[1] > many.bytes_read[0]


@given(st.integers(1, 200), st.integers(0, 200), st.integers(1, 100))
def test_pairs_and_context_count_exactly(queries: int, prefix: int, window: int) -> None:
    seen = [set(range(max(0, i - window + 1), i + 1)) for i in range(prefix, prefix + queries)]
    assert attended_pairs(queries, prefix, window) == sum(len(keys) for keys in seen)
    assert read_context(queries, prefix, window) == len(set().union(*seen))
    assert attended_pairs(queries, prefix) == sum(range(prefix + 1, prefix + queries + 1))


def test_ragged_batch_is_the_sum_of_its_sequences() -> None:
    alone = [layer_operators(LLAMA, batch=1, queries=q, prefix=p) for q, p in ((1, 700), (1, 90), (256, 0))]
    ragged = ragged_layer_operators(
        LLAMA,
        tokens=258,
        pairs=sum(float(attended_pairs(q, p)) for q, p in ((1, 700), (1, 90), (256, 0))),
        context=701 + 91 + 256,
    )
    for together, *parts in zip(ragged, *alone, strict=True):
        assert together.flops == pytest.approx(sum(part.flops for part in parts))


@pytest.mark.parametrize("tp", [1, 8])
def test_korthikanti_activation_bytes(tp: int) -> None:
    # arXiv:2205.05198, equations 1, 2 and 4 and table 2, for GPT-3 with sequences of 2048 and a micro-batch of 1.
    s, b, h, a = 2048, 1, GPT3.hidden, GPT3.heads
    saved = activation_tensors(GPT3, batch=b, queries=s, attention="unfused", dropout=True)
    tensor = {"heads": tp, "kv_heads": tp, "ffn": tp}
    assert sum(t.shard({}) for t in saved) == s * b * h * (34 + 5 * a * s / h)
    assert sum(t.shard(tensor) for t in saved) == pytest.approx(s * b * h * (10 + 24 / tp + 5 * a * s / (h * tp)))
    both = {**tensor, "tokens": tp}
    assert sum(t.shard(both) for t in saved) == pytest.approx(s * b * h / tp * (34 + 5 * a * s / h))
    selective = activation_tensors(GPT3, batch=b, queries=s, attention="unfused", dropout=True, recompute="selective")
    assert sum(t.shard(both) for t in selective) == pytest.approx(34 * s * b * h / tp)
    full = activation_tensors(GPT3, batch=b, queries=s, attention="unfused", dropout=True, recompute="full")
    assert sum(t.bytes for t in full) == 2 * s * b * h


def test_korthikanti_head_activations() -> None:
    # Section 4.3: embedding dropout mask sbh, final norm 2sbh, output layer 2sbh, fp32 logits 4sbv.
    s, b, h, v = 2048, 2, GPT3.hidden, GPT3.vocab
    saved = head_activation_tensors(GPT3, batch=b, queries=s, dropout=True)
    assert sum(t.bytes for t in saved) == s * b * h * 5 + 4 * s * b * v


def test_flash_attention_saves_no_scores() -> None:
    at = [sum(t.bytes for t in activation_tensors(LLAMA, batch=1, queries=s)) for s in (4096, 8192)]
    assert at[1] == 2 * at[0]
    unfused = [
        sum(t.bytes for t in activation_tensors(LLAMA, batch=1, queries=s, attention="unfused")) for s in (4096, 8192)
    ]
    assert unfused[1] > 2.5 * unfused[0]


@given(st.integers(1, 16), st.sampled_from([128, 512]))
def test_recompute_orders_memory(batch: int, queries: int) -> None:
    for arch in (GPT3, LLAMA, MIXTRAL):
        none, selective, full = (
            sum(
                t.bytes
                for t in activation_tensors(arch, batch=batch, queries=queries, recompute=r, attention="unfused")
            )
            for r in ("none", "selective", "full")
        )
        assert none > selective > full


def test_serving_head_scores_sampled_positions_only() -> None:
    head = head_operators(LLAMA, tokens=4096, positions=3)
    assert [op.name for op in head] == ["final-norm", "lm-head", "sampling"]
    assert head[1].flops == 2 * 3 * LLAMA.hidden * LLAMA.vocab


def test_popular_experts_leave_others_unvisited() -> None:
    even = GroupedMatmul.routed(name="up", tokens=32.0, experts=128, top_k=4, k=1.0, n=1.0)
    skewed = even.chosen(20.0)
    assert float(even.batch) == pytest.approx(128 * (1 - (1 - 4 / 128) ** 32))
    assert 0.75 * even.batch < skewed.batch < 0.9 * even.batch
    assert skewed.m * skewed.batch == pytest.approx(even.m * even.batch)  # the same tokens
    assert skewed.shard({"expert": 8}).batch == pytest.approx(
        GroupedMatmul.routed(name="up", tokens=32.0, experts=128, top_k=4, k=1.0, n=1.0, hosts=8, popularity=20.0).batch
    )
    alone = GroupedMatmul.routed(name="up", tokens=1.0, experts=128, top_k=4, k=1.0, n=1.0).chosen(20.0)
    assert float(alone.batch) == pytest.approx(4.0, rel=0.01)
