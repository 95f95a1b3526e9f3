from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from froude.core.errors import FroudeError
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve

TINY = {"name": "tiny", "layers": 2, "hidden": 64, "heads": 4, "ffn": 128, "vocab": 100}


def test_defaults_follow_from_other_fields() -> None:
    arch = Architecture.parse(TINY)
    assert (arch.kv_heads, arch.head_dim, arch.output_bias) == (4, 16, False)
    assert Architecture.parse({**TINY, "attention_bias": True}).output_bias


def test_parts_add_up() -> None:
    arch = resolve("qwen3-30b-a3b")
    parts = arch.embedding_parameters + arch.layers * arch.layer_parameters + arch.final_norm_parameters
    assert arch.parameters == parts + arch.head_parameters
    idle = (arch.experts.count - arch.experts.top_k) * arch.expert_parameters if arch.experts else 0
    assert arch.parameters - arch.active_parameters == arch.layers * idle


def test_leading_dense_layers_count_as_dense() -> None:
    experts = {"count": 8, "top_k": 2, "ffn": 32}
    all_moe = Architecture.parse({**TINY, "experts": experts})
    one_dense = Architecture.parse({**TINY, "experts": {**experts, "dense_layers": 1}})
    assert one_dense.moe_layers == 1
    assert all_moe.parameters - one_dense.parameters == all_moe.layer_parameters - all_moe.dense_layer_parameters


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heads": 0}, "heads: 0"),
        ({"kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"hidden": 66}, "head_dim must be given"),
        ({"hiden": 64}, "did you mean 'hidden'"),
        ({"experts": {"count": 2, "top_k": 3, "ffn": 8}}, "top_k 3 exceeds"),
        ({"norm": "rsm"}, "did you mean 'rms'"),
        ({"layers": -1}, "layers: -1"),
    ],
)
def test_bad_fields_are_one_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(FroudeError) as error:
        Architecture.parse({**TINY, **change})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_round_trip(tmp_path) -> None:  # type: ignore[no-untyped-def]
    arch = resolve("mixtral-8x7b")
    arch.write(tmp_path / "arch.yaml")
    assert resolve(str(tmp_path / "arch.yaml")) == arch


def test_flops_are_about_two_per_parameter() -> None:
    # Kaplan et al. (2020): 2N per token forward, N without embeddings, when the context is short beside the width.
    arch = resolve("llama-3.1-70b")
    body = arch.parameters - arch.embedding_parameters
    assert arch.flops_per_token(1) == pytest.approx(2 * body, rel=1e-3)
    attention = arch.flops_per_token(8192) - arch.flops_per_token(1)
    assert attention == pytest.approx(4 * 80 * 8192 * (8193 / 2 - 1), rel=1e-9)


def test_megatron_flops_formula() -> None:
    # Narayanan et al. (2021), equation 3, for one forward pass (a quarter of 96 B s l h^2 (...), attention not halved).
    arch = resolve("megatron/gpt-145.6b")
    s, layers, h, v = 2048, arch.layers, arch.hidden, arch.vocab
    forward = 24 * s * layers * h**2 * (1 + s / (6 * h) + v / (12 * layers * h))
    assert s * arch.flops_per_token(s, causal=False) == pytest.approx(forward, rel=1e-12)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_mean_keys_counts_windows_exactly(seq_len: int, window: int) -> None:
    arch = Architecture.parse({**TINY, "sliding_window": window})
    exact = sum(min(i, window) for i in range(1, seq_len + 1)) / seq_len
    assert arch.mean_keys(seq_len) == pytest.approx(exact)


def test_kv_cache_bytes() -> None:
    # Llama-3.1-70B: 80 layers x 8 heads x 128 x 2 (keys and values) x 2 bytes = 320 KiB a token.
    assert resolve("llama-3.1-70b").kv_bytes_per_token() == 320 * 1024
