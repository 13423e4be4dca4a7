"""The n-gram model against its twin, and the compressors' shares."""

from __future__ import annotations

import json
import lzma
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.corpus import baselines
from lmlab.corpus.ngram import NgramModel
from tests.corpus import twins
from tests.corpus.helpers import prose

SMALL = st.lists(st.text(alphabet="abé ", max_size=30), min_size=1, max_size=5).filter(any)


@settings(max_examples=60, deadline=None)
@given(SMALL, st.text(alphabet="abcé ", max_size=12), st.integers(1, 4))
def test_bits_equal_the_twin(training: list[str], text: str, order: int) -> None:
    model = NgramModel.train(training, order)
    expected = twins.bits(twins.kneser_ney(training, order), text, order)
    assert model.bits([text])[0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("order", [1, 3, 5, 8])
def test_probabilities_sum_to_one(order: int) -> None:
    model = NgramModel.train([prose(seed) for seed in range(5)], order)
    for context in (b"", b"the riv", b"zzzzzzzz", b"\xff\xfe"):
        total = sum(model.probabilities(context + bytes([byte]))[-1] for byte in range(256))
        assert total == pytest.approx(1.0, abs=1e-5)


def test_training_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [prose(seed) for seed in range(6)]
    whole = NgramModel.train(texts, 5).bits([prose(99)])
    monkeypatch.setattr("lmlab.corpus.ngram.CHUNK", 500)
    assert NgramModel.train(texts, 5).bits([prose(99)]) == pytest.approx(whole)


def test_more_context_and_like_text_help() -> None:
    training, text = [prose(seed, 2000) for seed in range(5)], [prose(99, 500)]
    bits = [float(NgramModel.train(training, order).bits(text)[0]) for order in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2]
    assert NgramModel.train(["0123456789" * 50], 4).bits(text)[0] > bits[2]


def test_bad_orders_and_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="order 9"):
        NgramModel.train(["x"], 9)
    with pytest.raises(ValueError, match="some text"):
        NgramModel.train([], 5)


def test_xz_shares_add_up_to_the_stream() -> None:
    texts = [prose(seed, 400) for seed in range(12)]
    whole = "".join(texts).encode()
    found = baselines.xz(texts)
    assert found.bits.sum() == 8 * len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME))
    assert found.bytes.tolist() == [len(t.encode()) for t in texts]
    score = found.score
    assert score.n == 12 and score.low <= score.value <= score.high
    assert score.value == pytest.approx(found.bits.sum() / len(whole))
    coarse = baselines.xz(texts, budget=1)
    assert len(coarse.bits) == 8
    assert coarse.bits.sum() == found.bits.sum() and coarse.bytes.sum() == len(whole)


def test_the_excess_is_paired_and_comes_back_from_a_file() -> None:
    texts = [prose(seed, 100 + 60 * seed) for seed in range(12)]
    for alone in (baselines.xz(texts), baselines.xz(texts, budget=1)):
        alone = baselines.Baseline.from_json(json.loads(json.dumps(alone.to_json())))
        sizes = np.array([len(text.encode()) for text in texts])
        rate = alone.bits.sum() / alone.bytes.sum()
        assert alone.excess(rate * sizes - 0.5 * sizes).value == pytest.approx(-0.5)
        # A model that saves 5% on every unit is surely better, though the units' own rates lie far apart.
        saving = np.repeat(-0.05 * alone.bits / alone.documents, alone.documents)
        exact = np.repeat(alone.bits / alone.documents, alone.documents)
        excess = alone.excess(exact + saving)
        assert excess.high < 0 and excess.n == len(alone.bits)
        assert excess.high - excess.low < 0.2 * (alone.score.high - alone.score.low)


def test_priming_helps_with_like_text_and_is_exact_in_the_whole() -> None:
    texts = [prose(seed, 300) for seed in range(4)]
    training = [prose(seed, 300) for seed in range(100, 140)]
    alone = baselines.xz(texts)
    primed = baselines.xz_primed(texts, training, alone)
    before = "".join(training).encode()
    expected = baselines.xz_size(before + "".join(texts).encode()) - baselines.xz_size(before)
    assert primed.bits.sum() == pytest.approx(8 * expected)
    assert primed.score.value < alone.score.value


def test_measure_gives_the_three_and_spread_takes_from_everywhere() -> None:
    training = [prose(seed, 300) for seed in range(30)]
    found = baselines.measure([prose(seed, 300) for seed in range(100, 104)], training)
    assert set(found) == {"xz", "xz_primed", "ngram"}
    scores = {name: each.score for name, each in found.items()}
    assert all(0 < s.low <= s.value <= s.high and math.isfinite(s.high) for s in scores.values())
    some = baselines.spread(training, 10_000)
    places = [training.index(text) for text in some]
    assert 8_000 < sum(map(len, some)) < 13_000
    assert places[0] < 5 and places[-1] > 24
    assert np.all(np.diff(places) > 0)
    assert baselines.spread(training, 10**9) == training
