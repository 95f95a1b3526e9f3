"""Byte-level BPE: nothing is lost, merges go by rank."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from froude.runtime.models.tokenizer import ByteLevelBPE, _stand_in_of

BYTES = [_stand_in_of()[byte] for byte in range(256)]
MERGES = ["l o", "lo w", "Ġ low", "e r"]
TOKENIZER = ByteLevelBPE([*BYTES, "lo", "low", "Ġlow", "er", "<|end|>"], MERGES, special=[260])


@given(st.text())
def test_decoding_undoes_encoding(text: str) -> None:
    if "<|end|>" not in text:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_merges_by_rank() -> None:
    """Sennrich et al. (2016), arXiv:1508.07909: the most frequent pair first."""
    words = [TOKENIZER.tokens[i] for i in TOKENIZER.encode("lower low")]
    assert words == ["low", "er", "Ġlow"]


def test_digits_stand_alone_and_control_tokens_are_whole() -> None:
    ids = TOKENIZER.encode("12<|end|>")
    assert [TOKENIZER.tokens[i] for i in ids] == ["1", "2", "<|end|>"]
    assert TOKENIZER.decode(ids) == "12"
