"""What the model learns from: a seeded synthetic language, or the bytes of a text file.

Sequence ``i`` depends on the seed and on ``i`` alone, so every layout sees the same data whichever rank asks for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from froude.core.errors import FroudeError, InvalidValueError

Tokens = npt.NDArray[np.int64]

SUCCESSORS = 8  # tokens that may follow a given token in the synthetic language


class Data(Protocol):
    """An endless, numbered supply of sequences."""

    def sequences(self, first: int, count: int, length: int) -> Tokens:
        """Sequences ``first`` .. ``first + count - 1`` as an array [count, length]."""


class Markov:
    """A first-order Markov chain over the vocabulary.

    Every token has `SUCCESSORS` possible successors, drawn once from the seed, taken with probabilities proportional
    to 1/1, 1/2, 1/3, ... . A model that has learnt it perfectly reaches a loss of `entropy` nats; one that has learnt
    nothing starts at ln(vocabulary).
    """

    def __init__(self, vocab: int, seed: int) -> None:
        self.vocab, self.seed = vocab, seed
        odds = 1.0 / np.arange(1, SUCCESSORS + 1)
        self.odds = odds / odds.sum()
        self.successors = np.random.Generator(np.random.Philox(key=seed)).integers(0, vocab, (vocab, SUCCESSORS))

    @property
    def entropy(self) -> float:
        """Nats per token that no model can do without (a little less where two successors coincide)."""
        return float(-(self.odds * np.log(self.odds)).sum())

    def sequences(self, first: int, count: int, length: int) -> Tokens:
        """Walks of the chain, each from its own counter-based stream."""
        tokens = np.empty((count, length), dtype=np.int64)
        choices = np.empty((count, length), dtype=np.int64)
        for row in range(count):
            random = np.random.Generator(np.random.Philox(key=self.seed + 1, counter=[0, 0, 0, first + row]))
            tokens[row, 0] = random.integers(0, self.vocab)
            choices[row] = np.searchsorted(np.cumsum(self.odds), random.random(length) * (1 - 1e-12))
        for at in range(1, length):
            tokens[:, at] = self.successors[tokens[:, at - 1], choices[:, at]]
        return tokens


class TextBytes:
    """Pieces of a text file, one token per byte, at places drawn from the seed and the sequence's number."""

    def __init__(self, path: str | Path, vocab: int, seed: int) -> None:
        if vocab < 256:
            raise InvalidValueError(
                "vocab", vocab, "is too small for the bytes of a text; the smallest that fits is 256"
            )
        try:
            self.text = np.frombuffer(Path(path).read_bytes(), dtype=np.uint8)
        except OSError as error:
            raise FroudeError(f"data: {str(path)!r} cannot be read ({error.strerror})") from None
        self.path, self.seed = path, seed

    def sequences(self, first: int, count: int, length: int) -> Tokens:
        """Slices of the text."""
        room = len(self.text) - length
        if room < 0:
            raise FroudeError(f"data: {str(self.path)!r} has {len(self.text)} bytes; a sequence needs {length}")
        rows = []
        for row in range(count):
            random = np.random.Generator(np.random.Philox(key=self.seed + 1, counter=[0, 0, 0, first + row]))
            start = int(random.integers(0, room + 1))
            rows.append(self.text[start : start + length].astype(np.int64))
        return np.stack(rows)


def open_data(source: str | None, vocab: int, seed: int) -> Data:
    """The synthetic language, or the bytes of the file at ``source``."""
    return Markov(vocab, seed) if source is None else TextBytes(source, vocab, seed)
