"""Spans that stand in several places, and repetition inside a document, on planted copies and against a suffix array."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.corpus import engine
from lmlab.corpus.dedup import kernels, passes, shuffle
from lmlab.corpus.dedup.cut import cut, merge
from lmlab.corpus.dedup.spans import DuplicateSentences, DuplicateSubstrings
from lmlab.corpus.dedup.units import ngrams, units
from lmlab.corpus.steps.repeats import Repeats, RepeatsStep
from tests.corpus import twins
from tests.corpus.helpers import parts_of, prose, table, through
from tests.corpus.test_corpus_kernels import TEXTS

# --- units -------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    st.lists(TEXTS | st.text('a.!? \n。")', max_size=40), min_size=1, max_size=4), st.sampled_from(sorted(twins.UNITS))
)
def test_units_equal_their_twin(texts: list[str], unit: str) -> None:
    found = units(pa.array(texts), unit)
    expected = [(d, *each) for d, text in enumerate(texts) for each in twins.UNITS[unit](text)]
    spans = [texts[d].encode()[a:b].decode() for d, a, b in zip(found.documents, found.firsts, found.lasts)]
    assert list(zip(found.documents.tolist(), spans)) == [(d, span) for d, span, _ in expected]
    assert found.words.tolist() == [len(words) for _, _, words in expected]
    names: dict[tuple, int] = {}
    for h, (_, _, words) in zip(found.hashes.tolist(), expected):
        assert names.setdefault(tuple(words), h) == h
    assert len(set(names.values())) == len(names)


def test_sentences_of_chinese_and_of_english() -> None:
    text = '今天天气很好。我们去公园！你呢？"He left." (She did not.) It cost 3.50 in v1.2.\nA line'
    found = units(pa.array([text]), "sentence")
    spans = [text.encode()[a:b].decode() for a, b in zip(found.firsts, found.lasts)]
    assert spans == [
        "今天天气很好。",
        "我们去公园！",
        "你呢？",
        '"He left." ',
        "(She did not.) ",
        "It cost 3.50 in v1.2.\n",
        "A line",
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=30), min_size=1, max_size=4), st.integers(1, 6))
def test_winnowing_picks_the_leftmost_least(documents: list[list[int]], width: int) -> None:
    at = np.cumsum([0, *map(len, documents)])
    keys = np.array([k for each in documents for k in each], np.uint64)
    expected = []
    for start, each in zip(at, documents):
        for i in range(len(each) - width + 1):
            window = each[i : i + width]
            expected.append(start + i + window.index(min(window)))
    assert kernels.leftmost_least(keys, at, width).tolist() == expected


# --- sentences and lines -----------------------------------------------------------------------------------------


def decide(
    tmp_path: Path, texts: list[str], config, splits: list[str] | None = None, kind: str = "prose", rows: int = 4
) -> list[dict]:
    documents = table(*texts, kind=kind)
    place = documents.schema.get_field_index("split")
    documents = documents.set_column(place, "split", pa.array(splits or ["train"] * len(texts)))
    work = Path(tempfile.mkdtemp(dir=tmp_path))
    parts = parts_of(work / "local", documents, rows)
    name = "duplicate_sentences" if isinstance(config, DuplicateSentences) else "duplicate_substrings"
    return through(passes.spans_pass(name, parts, config, work, lambda title, tasks: engine.run(tasks)))


def restored(row: dict) -> str:
    """The text with its cuts put back (empty lines at the ends aside)."""
    raw = row["text"].encode()
    for each in sorted(row["cuts"], key=lambda c: c["first"]):
        raw = raw[: each["first"]] + each["text"].encode() + raw[each["first"] :]
    return raw.decode()


def test_c4s_rule_of_three_sentences(tmp_path: Path) -> None:
    shared = "First of the shared. Second of them! And a third?"
    texts = [
        f"One is here. {shared} Two is here.",
        f"Another one. {shared}\nMore of it.",
        f"{shared[:-13]} No third here.",
    ]
    config = DuplicateSentences(enabled=True, min_words_left=0)
    first, second, third = decide(tmp_path, texts, config)
    assert first["text"] == texts[0] and first["cuts"] == []
    assert second["text"] == "Another one. More of it." and restored(second) == texts[1]
    assert [c["step"] for c in second["cuts"]] == ["duplicate_sentences"]
    assert third["text"] == texts[2], "two sentences alone are no span of three"
    swapped = decide(tmp_path, texts, config, ["train", "heldout", "train"])
    assert swapped[1]["text"] == texts[1] and swapped[0]["text"] == "One is here. Two is here."
    gone = decide(tmp_path, texts, DuplicateSentences(enabled=True))
    assert [row["keep"] for row in gone] == [True, False, True]
    assert gone[1]["reason"] == "3 sentences that stand elsewhere, fewer than 50 words left"


def test_lines_common_across_documents(tmp_path: Path) -> None:
    texts = [f"{prose(i, 30)}\nSubscribe to our daily letter now\n}}\n" for i in range(6)]
    config = DuplicateSentences(enabled=True, unit="line", length=1, min_words=3, keep="none", min_words_left=0)
    rows = decide(tmp_path, texts, config)
    assert all("Subscribe" not in row["text"] and row["text"].endswith("}") for row in rows)
    assert decide(tmp_path, texts, config, kind="code")[0]["text"] == texts[0], "code takes no part unless it is named"
    often = config.model_copy(update={"least": 7})
    assert [row["text"] for row in decide(tmp_path, texts, often)] == texts
    once = config.model_copy(update={"keep": "first"})
    assert sum("Subscribe" in row["text"] for row in decide(tmp_path, texts, once)) == 1


def test_dropping_documents_made_of_repeats(tmp_path: Path) -> None:
    shared = prose(1, 60).replace("\n", " ")
    texts = [shared, f"{shared} {prose(2, 10)}", f"{shared} {prose(3, 200)}"]
    config = DuplicateSentences(enabled=True, action="drop", share=0.5)
    rows = decide(tmp_path, texts, config)
    assert [row["keep"] for row in rows] == [True, False, True]
    assert rows[1]["reason"] == "3 sentences that stand elsewhere: more than 50% of it" and rows[1]["text"] == texts[1]


# --- exact substrings --------------------------------------------------------------------------------------------


def by_suffix_array(documents: list[list[int]], length: int) -> list[list[bool]]:
    """Which units stand in a window of `length` that stands elsewhere, the first place apart: by pydivsufsort's suffix
    array and longest common prefixes, over all documents with a mark of its own between each two."""
    divsufsort = pytest.importorskip("pydivsufsort")
    joined, owner = [], []
    for d, each in enumerate(documents):
        joined += [*each, 1000 + d]
        owner += [(d, i) for i in range(len(each))] + [None]
    text = np.array(joined, np.uint32)
    order = np.asarray(divsufsort.divsufsort(text))
    common = np.asarray(divsufsort.kasai(text, order))
    marked = [[False] * len(each) for each in documents]
    group: list[int] = []

    def close() -> None:
        for place in sorted(group)[1:]:
            d, i = owner[place]
            marked[d][i : i + length] = [True] * length

    for rank, place in enumerate(order.tolist()):
        group.append(place)
        if common[rank] < length:
            close()
            group = []
    close()
    return marked


LETTERS = "abcdef"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_substrings_are_those_of_a_suffix_array(tmp_path: Path, seed: int, length: int) -> None:
    draw = random.Random(seed)
    documents = [[draw.randrange(3) for _ in range(draw.randrange(40))] for _ in range(6)]
    for _ in range(4):  # longer copies than chance makes
        a, b = draw.choice(documents), draw.choice(documents)
        start = draw.randrange(len(a) + 1)
        b[draw.randrange(len(b) + 1) : 0] = a[start : start + 15]
    expected = by_suffix_array(documents, length)
    texts = [" ".join(LETTERS[u] for u in each) for each in documents]
    config = DuplicateSubstrings(enabled=True, length=length)
    rows = decide(tmp_path, texts, config, rows=2)
    for text, marks, row in zip(texts, expected, rows):
        words = text.split(" ") if text else []
        left = [word for word, gone in zip(words, marks) if not gone]
        assert row["text"].split() == left, (text, marks)


@pytest.mark.parametrize("unit", ["word", "byte", "token"])
def test_a_planted_passage_is_cut_to_the_character(tmp_path: Path, unit: str) -> None:
    passage = "敏捷的棕色狐狸 jumps over the lazy dog, twice — naïve café; 今天天气很好 and nobody knew why it was so. "
    texts = [f"{prose(i, 60)} <{i}> {passage}[{i}] {prose(50 + i, 60)}" for i in range(3)]
    tokenizer = None
    if unit == "token":
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        )
        tokenizer = str(tmp_path / "tokenizer.json")
        made.save(tokenizer)
    config = DuplicateSubstrings(
        enabled=True, unit=unit, length={"word": 12, "byte": 60}.get(unit, 40), tokenizer=tokenizer
    )
    rows = decide(tmp_path, texts, config)
    assert rows[0]["text"] == texts[0]
    for i, row in enumerate(rows[1:], 1):
        assert (
            "狐狸" not in row["text"]
            and prose(i, 60)[:40] in row["text"]
            and f"{i}] {prose(50 + i, 60)[:9]}" in row["text"]
        )
        assert restored(row) == texts[i]


def test_substrings_do_not_depend_on_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = prose(99, 80)
    texts = [f"{prose(i, 100)} {shared[i * 5 :]}" for i in range(12)]
    config = DuplicateSubstrings(enabled=True, length=30)
    expected = decide(tmp_path, texts, config)
    assert sum(bool(row["cuts"]) for row in expected) == 11
    monkeypatch.setattr(shuffle, "RANGE_BYTES", 100)
    monkeypatch.setattr(shuffle, "RUN_BYTES", 500)
    assert decide(tmp_path, texts, config) == expected


# --- within a document -------------------------------------------------------------------------------------------


def repeats(text: str, kind: str = "prose", **values) -> dict:
    return RepeatsStep(Repeats(enabled=True, **values))(table(text, kind=kind)).to_pylist()[0]


def test_repeated_lines_and_paragraphs_stay_once() -> None:
    text = "Home and more links here\nA line of text.\n\nHome and more links here\n}\n}\n\nA line of TEXT!\n"
    row = repeats(text)
    assert row["text"] == "Home and more links here\nA line of text.\n\n}\n}"
    assert "".join(c["text"] for c in row["cuts"]) == "Home and more links here\nA line of TEXT!\n"
    assert repeats(text, kind="code")["text"] == text


def test_sentences_of_repeated_phrases_go() -> None:
    loop = "buy it now and " * 8
    row = repeats(f"This is a sentence of its own words. {loop}. And here it ends, as it should end.")
    assert row["text"] == "This is a sentence of its own words. And here it ends, as it should end."
    assert repeats(f"{loop}.")["reason"] == "repeats itself, fewer than 1 words left"


def test_repeated_ngrams_go() -> None:
    a = "one two three four five six seven eight"
    row = repeats(f"{a} and then again {a} for good", ngram=8, units=[], max_phrases=None)
    assert row["text"] == f"{a} and then again  for good"
    assert repeats(f"{a} {a[:-6]}", ngram=8, units=[], max_phrases=None)["cuts"] == []


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_repeats_once_done_find_nothing_more_and_lose_nothing(text: str) -> None:
    step = RepeatsStep(Repeats(enabled=True, min_words=1, max_phrases=None, units=["line"]))
    once = step(table(text))
    lines = {tuple(twins.plain_words(line)) for line in text.split("\n")}
    assert {tuple(twins.plain_words(line)) for line in once["text"][0].as_py().split("\n")} | {()} == lines | {()}
    assert step(once.drop_columns(["cuts"]))["cuts"].to_pylist() == [[]]


def test_cut_never_splits_a_character() -> None:
    found = cut(table("中文字"), "s", np.array([1]), np.array([5]), np.array([0])).to_pylist()[0]
    assert (found["text"] == "中" and found["cuts"] == [{"step": "s", "first": 3, "text": "文"}]) or found[
        "text"
    ] == "中字"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 6)), max_size=12))
def test_merging_spans_covers_the_same(spans: list[tuple[int, int, int]]) -> None:
    d, a, n = (np.array([s[i] for s in spans], np.int64) for i in range(3))
    firsts, lasts, rows = merge(a, a + n, d)
    cover = {(row, i) for row, x, y in zip(d, a, a + n) for i in range(x, y)}
    assert {(row, i) for row, x, y in zip(rows, firsts, lasts) for i in range(x, y)} == cover
    assert all(r0 < r1 or (r0 == r1 and y < x) for r0, r1, y, x in zip(rows, rows[1:], lasts, firsts[1:]))


def test_ngrams_of_nothing() -> None:
    assert [len(each) for each in ngrams(pa.array(["", "a b"]), 3)] == [0, 0, 0, 0]
