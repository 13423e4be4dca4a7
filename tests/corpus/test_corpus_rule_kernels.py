"""The rule sets' kernels against their slow twins, and the laws of tokens."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmlab.corpus import cleaning, repetition
from lmlab.corpus.arrow import buffers
from lmlab.corpus.characters import Spaceless, classes
from lmlab.corpus.cleaning import packed
from lmlab.corpus.steps.c4 import C4, C4Step
from lmlab.corpus.tokens import hashes_of, tokens
from lmlab.corpus.web import fineweb, gopher_quality, gopher_repetition
from tests.corpus import rule_twins as twins
from tests.corpus.helpers import table

PIECES = st.sampled_from(
    ["the", "be ", "a b", " ", "  ", "\n", "\n\n", "\t", "#", "...", "…", "- ", "• ", "....", "12", "'x'", "Wörter", "Ä",
     "中文", "「中」，", "日本語の", "カタ", "ไทยครับ", "กำ", "ខ្មែរ", "😀", "_", "x.y", "one two three four five six ", "\u00a0",
     "\u2028", "\r\n", "\r", "\x85", "。", "！", "e\u0301", "!", "?\n", ". ", "\"q\"", "[12]", "[edit]", "[citation needed]",
     "[x]", "JavaScript ", "Lorem Ipsum", "{", "privacy Policy", "\x07", "(", ")", "the be to of and that\n", "\U00020000"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=60).map("".join) | st.text(
    st.characters(codec="utf-8", max_codepoint=0x31FFF), max_size=40
)
BATCH = st.lists(TEXTS, min_size=1, max_size=4)
WORTH = Spaceless().worth()
STOPS = ["the", "be", "to", "of", "文", "の"]


def rounded(row) -> object:
    return pytest.approx(list(row), abs=1e-9, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(BATCH)
@example(["\u3400\x08\u1cd0"])
def test_tokens_equal_their_twin(texts: list[str]) -> None:
    data, offsets = buffers(pa.array(texts))
    found, small = tokens(data, offsets), tokens(data, offsets, fold=True)
    names: dict[int, str] = {}
    for d, text in enumerate(texts):
        part = slice(found.bounds[d], found.bounds[d + 1])
        expected = twins.tokens(text)
        shown = [bytes(data[a:b]).decode() for a, b in zip(found.starts[part], found.ends[part], strict=True)]
        assert list(zip(shown, (found.kinds[part] >> 4).tolist(), strict=True)) == expected
        assert found.lengths[part].tolist() == [len(each) for each, _ in expected]
        for h, each in zip(found.hashes[part].tolist(), expected, strict=True):
            assert names.setdefault(h, twins.key(each)) == twins.key(each)
        assert found.counts[d].tolist() == [
            len(text), len(text.splitlines()), text.count("#"), text.count("...") + text.count("…"),
        ]  # fmt: skip
        part = slice(small.bounds[d], small.bounds[d + 1])
        words = [word for word, _ in twins.folded(text)]
        assert small.lengths[part].tolist() == list(map(len, words))
        folded = {word: h for word, h in zip(words, small.hashes[part].tolist(), strict=True)}
        assert len(set(folded.values())) == len(folded)
    assert len(set(names.values())) == len(names)


@settings(max_examples=150, deadline=None)
@given(BATCH)
def test_gopher_and_fineweb_equal_their_twins(texts: list[str]) -> None:
    data, offsets = buffers(pa.array(texts))
    found = tokens(data, offsets)
    stops, which = hashes_of(STOPS).reshape(1, -1), np.array([0, -1, 0, -1][: len(texts)])
    quality = gopher_quality(data, found, WORTH, stops, which)
    repeated = gopher_repetition(data, offsets, found, WORTH, np.ones(len(texts), bool))
    web = fineweb(data, offsets, found, WORTH, classes(), 30)
    for d, text in enumerate(texts):
        assert quality[d] == rounded(twins.quality(text, STOPS if which[d] == 0 else None)), text
        assert repeated[d] == rounded(twins.repetition(text)), text
        assert web[d] == rounded(twins.fineweb(text)), text


@settings(max_examples=150, deadline=None)
@given(BATCH, st.sampled_from([{}, {"terminal_marks": []}, {"max_curly_bracket": None, "remove_citations": False}]))
def test_c4_equals_its_twin(texts: list[str], changed: dict) -> None:
    config = C4.model_validate({"min_line_words": 2, "max_word_length": 12, "min_sentences": None, **changed})
    result = C4Step(config, Spaceless())(table(*texts))
    for text, new, signals in zip(texts, result["text"].to_pylist(), result["c4_signals"].to_pylist(), strict=True):
        expected, counts = twins.c4(text, config)
        assert signals == counts, text
        if not (counts["lorem_ipsum"] or counts["curly_bracket"]):
            assert new.strip() == expected.strip(), text


@settings(max_examples=150, deadline=None)
@given(BATCH, st.integers(1, 4), st.integers(1, 3))
def test_roots_equals_its_twin(texts: list[str], characters: int, words: int) -> None:
    data, offsets = buffers(pa.array(texts))
    found = tokens(data, offsets, fold=True)
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.cumsum([0, *map(len, texts)])
    stops = hashes_of(STOPS, fold=True)
    which = np.array([0, -1, 0, -1][: len(texts)])
    sizes = np.array([[characters, words]] * len(texts))
    values = repetition.roots(
        points, places, found.bounds, found.hashes, found.kinds, WORTH, classes(), sizes, stops,
        np.array([0, len(stops)]), which, hashes_of(["one"], fold=True),
    )  # fmt: skip
    for d, text in enumerate(texts):
        expected = twins.roots(text, STOPS if which[d] == 0 else None, ["one"], characters, words)
        assert values[d] == rounded(expected), text


def test_a_large_repetitive_text_and_what_is_not_wanted() -> None:
    text = "\n".join(f"line {i % 97} of the great song goes on and on" for i in range(3000))
    data, offsets = buffers(pa.array([text, text]))
    values = gopher_repetition(data, offsets, tokens(data, offsets), WORTH, np.array([True, False]))
    assert values[0] == rounded(twins.repetition(text)) and np.isnan(values[1]).all()


def test_phrases_are_packed_by_their_bytes() -> None:
    texts, sizes = packed(["ab", "é"])
    assert sizes.tolist() == [2, 2] and bytes(texts[1]).decode() == "é"
    assert packed([])[1].tolist() == [] and len(cleaning.SIGNALS) == 11
