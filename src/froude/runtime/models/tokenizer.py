"""Byte-level byte-pair encoding, as GPT-2 and its descendants use it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import pairwise

from froude.core.registry import Source

source = Source("Radford et al.", 2019, "Language Models are Unsupervised Multitask Learners")

# GPT-2's splitting pattern with Unicode classes written for `re`: a letter is a word character that is neither digit
# nor underscore. Digits stand alone, as SmolLM's tokenizer has it.
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\d|\s+(?!\S)|\s+")


class ByteLevelBPE:
    """Text to token ids and back. Every byte sequence can be encoded, so there is no unknown token.

    Args:
        tokens: text of every token, bytes written as GPT-2's printable stand-ins.
        merges: ``"left right"``, most frequent first.
        special: ids of control tokens, matched whole in the text and left out when decoding.
    """

    def __init__(self, tokens: Sequence[str], merges: Iterable[str], special: Iterable[int] = ()) -> None:
        self.tokens = list(tokens)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.ranks = {tuple(merge.split(" ", 1)): rank for rank, merge in enumerate(merges)}
        self.special = {self.tokens[i]: i for i in special}
        self._control = re.compile("|".join(map(re.escape, sorted(self.special, key=len, reverse=True))) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""
        ids: list[int] = []
        at = 0
        for control in self._control.finditer(text):
            ids += self._encode_plain(text[at : control.start()])
            ids.append(self.special[control.group()])
            at = control.end()
        return ids + self._encode_plain(text[at:])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; bytes that are not UTF-8 on their own become the replacement character."""
        control = set(self.special.values())
        stand_ins = "".join(self.tokens[i] for i in ids if i not in control)
        return bytes(_byte_of()[c] for c in stand_ins).decode("utf-8", errors="replace")

    def _encode_plain(self, text: str) -> list[int]:
        written = _stand_in_of()
        ids: list[int] = []
        for word in _WORDS.findall(text):
            ids += [self.ids[part] for part in self._merge([written[byte] for byte in word.encode("utf-8")])]
        return ids

    def _merge(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged: list[str] = []
            i = 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return parts


@cache
def _stand_in_of() -> dict[int, str]:
    """GPT-2's printable character for every byte: itself where printable, else one beyond Latin-1."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@cache
def _byte_of() -> dict[str, int]:
    return {character: byte for byte, character in _stand_in_of().items()}
