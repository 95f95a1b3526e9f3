from __future__ import annotations

import numpy as np
import pytest

from froude.core.errors import FroudeError, InvalidValueError
from froude.runtime.train.data import SUCCESSORS, Markov, TextBytes, open_data


def test_a_sequence_depends_on_seed_and_number_alone():
    data = Markov(100, seed=3)
    together = data.sequences(5, 4, 33)
    apart = np.concatenate([Markov(100, seed=3).sequences(5 + i, 1, 33) for i in range(4)])
    np.testing.assert_array_equal(together, apart)
    assert not np.array_equal(together, Markov(100, seed=4).sequences(5, 4, 33))
    assert not np.array_equal(together[0], together[1])


def test_the_language_has_the_entropy_it_claims():
    vocab = 50
    data = Markov(vocab, seed=0)
    tokens = data.sequences(0, 40, 2000)
    counts = np.zeros((vocab, vocab))
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1.0)
    assert (np.count_nonzero(counts, axis=1) <= SUCCESSORS).all()
    chances = counts / counts.sum(axis=1, keepdims=True)
    weight = counts.sum(axis=1) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = -np.nansum(np.where(chances > 0, chances * np.log(chances), 0.0), axis=1)
    # two of a token's successors may be the same token, which lowers the entropy a little
    assert 0.9 * data.entropy < weight @ nats < data.entropy
    assert data.entropy < np.log(vocab)


def test_text_is_cut_into_bytes(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(bytes(range(256)) * 4)
    rows = TextBytes(path, 256, seed=0).sequences(0, 3, 100)
    assert rows.shape == (3, 100)
    assert (np.diff(rows, axis=1) % 256 == 1).all()
    with pytest.raises(InvalidValueError, match="256"):
        TextBytes(path, 128, seed=0)
    with pytest.raises(FroudeError, match="1024 bytes; a sequence needs 2000"):
        TextBytes(path, 256, seed=0).sequences(0, 1, 2000)
    with pytest.raises(FroudeError, match="cannot be read"):
        open_data(str(tmp_path / "nothing.txt"), 256, 0)
