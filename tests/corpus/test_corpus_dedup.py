"""Duplicates and decontamination on planted copies."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from lmlab.corpus import contamination, dedup
from lmlab.corpus.config import Decontamination, NearDuplicates
from tests.corpus import twins
from tests.corpus.helpers import WORDS, prose, table


def edited(text: str, share: float, seed: int) -> str:
    """The text with a share of its words replaced."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + "x" if draw.random() < share else word for word in text.split(" "))


def find(texts: list[str], splits: list[str] | None = None, **settings) -> dedup.Duplicates:
    config = NearDuplicates(**settings)
    tables = [table(text, split=split) for text, split in zip(texts, splits or ["train"] * len(texts), strict=True)]
    step = dedup.SignStep(config)
    return dedup.find(pa.concat_tables([step(each) for each in tables]), config)


def test_planted_near_duplicates_are_found_and_distinct_texts_stay() -> None:
    originals = [prose(seed, 400) for seed in range(60)]
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    alike = [twins.jaccard(a, b, 5) for a, b in zip(originals, copies, strict=True)]
    found = find(originals + copies)
    joined = [found.original[60 + i] == i for i in range(60)]
    certain = [s >= 0.85 for s in alike]  # below, the S-curve lets some pass
    assert sum(certain) > 30
    assert all(j for j, c in zip(joined, certain, strict=True) if c)
    assert (found.original[:60] == np.arange(60)).all()
    close = [abs(float(found.similarity[60 + i]) - s) < 0.17 for i, s in enumerate(alike) if joined[i]]
    assert all(close)


def test_which_copy_stays() -> None:
    a, b = prose(1, 300), prose(2, 300)
    texts = [a, edited(a, 0.005, 1), a, b, edited(b, 0.005, 2), b]
    found = find(texts, ["train", "train", "heldout", "train", "heldout", "heldout"])
    assert found.original.tolist() == [2, 2, 2, 4, 4, 4], "the first held-out copy, in the order of the corpus"
    assert found.exact.tolist() == [True, False, False, True, False, False]


def test_clusters_join_through_a_chain() -> None:
    first = prose(3, 600)
    second = edited(first, 0.02, 1)
    third = edited(second, 0.02, 2)
    found = find([first, second, third], bands=32, rows=4, threshold=0.75)
    assert found.original.tolist() == [0, 0, 0]
    assert find([first, second, third], bands=32, rows=4, threshold=0.99).original.tolist() == [0, 1, 2]


def test_dropped_documents_take_no_part() -> None:
    config = NearDuplicates()
    documents = table(prose(1), prose(1), prose(1))
    documents = documents.set_column(
        documents.schema.get_field_index("keep"), "keep", pa.array([False, True, True], pa.bool_())
    )
    assert dedup.find(dedup.SignStep(config)(documents), config).original.tolist() == [0, 1, 1]


def test_short_and_spaceless_texts() -> None:
    chinese = (
        "敏捷的棕色狐狸跳过了懒狗，孩子们在房子后面的花园里玩耍。今天天气很好，我们一起去公园散步，然后回家吃饭。" * 3
    )
    found = find(["one two", "one  two!", "three four", chinese, chinese.replace("天气", "空气", 1)])
    assert found.original[:3].tolist() == [0, 0, 2], "layout and punctuation do not hide a copy"
    assert twins.jaccard(chinese, chinese.replace("天气", "空气", 1), 5) > 0.8
    assert found.original[3:].tolist() == [3, 3]


def test_off_is_off() -> None:
    config = NearDuplicates(enabled=False)
    keys = dedup.SignStep(config)(table(prose(1), prose(1)))
    assert dedup.find(keys, config, exact=False).original.tolist() == [0, 1]
    assert dedup.find(keys, config, exact=True).original.tolist() == [0, 0]


# --- decontamination ---------------------------------------------------------------------------------------------


def overlaps(heldout: list[str], training: list[str], **settings) -> dict[int, contamination.Overlap]:
    config = Decontamination(**settings)
    index = contamination.build([(f"h/{i}", text) for i, text in enumerate(heldout)], config)
    matches = contamination.MatchStep(index, config, "")(table(*training))
    return {overlap.row: overlap for overlap in contamination.judge([matches], index, config)}


def test_a_planted_leak_is_dropped_and_its_span_reported() -> None:
    heldout = prose(10, 300)
    leak = " ".join(heldout.split(" ")[40:140])
    training = [prose(11, 200), prose(12, 150) + "\n\n" + leak, prose(13, 20_000) + " " + heldout.upper()]
    found = overlaps([heldout], training)
    assert sorted(found) == [1, 2]
    assert found[1].drop and found[1].share > 0.2 and found[1].heldout == "h/0"
    first, last = found[1].spans[0]
    assert training[1].encode()[first:last].decode() == leak.strip(" .\n")
    # all of a held-out text inside a long document: a small share of the document, all of the held-out text
    assert found[2].share < 0.05 and found[2].heldout_share == 1.0 and found[2].drop
    line = contamination.report(found[1], training[1])
    assert line["dropped"] and line["spans"][0]["text"][:40] == training[1].encode()[first:last].decode()[:40]


def test_boilerplate_and_small_overlaps_do_not_empty_the_corpus() -> None:
    licence = (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and more words"
    )
    heldout = licence + "\nElsewhere " + prose(20, 200)
    training = [f"{licence}\nChapter {seed} {prose(seed, 200)}" for seed in range(100, 120)]
    assert overlaps([heldout], training) == {}, "in more than 10 training documents: boilerplate"
    few = overlaps([heldout], training[:5])
    assert len(few) == 5 and not any(overlap.drop for overlap in few.values()), "seen and reported, but a small share"


def test_only_kept_training_documents_are_matched() -> None:
    text = prose(30, 100)
    config = Decontamination()
    index = contamination.build([("h/0", text)], config)
    step = contamination.MatchStep(index, config, "")
    assert contamination.judge([step(table(text, split="heldout"))], index, config) == []
    assert len(contamination.judge([step(table(text))], index, config)) == 1
    empty = contamination.build([], config)
    assert contamination.judge([contamination.MatchStep(empty, config, "")(table(text))], empty, config) == []


@pytest.mark.parametrize("words", [5, 12])
def test_texts_shorter_than_an_ngram_match_nothing(words: int) -> None:
    text = " ".join(WORDS[:words])
    assert overlaps([text], [text]) == {}
