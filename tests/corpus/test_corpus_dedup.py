"""Duplicates and decontamination on planted copies."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lmlab.corpus import engine
from lmlab.corpus.config import NearDuplicates
from lmlab.corpus.dedup import documents as dedup
from lmlab.corpus.dedup import kernels, passes, shuffle
from lmlab.errors import Failed
from tests.corpus import twins
from tests.corpus.helpers import WORDS, parts_of, prose, table, through


def edited(text: str, share: float, seed: int) -> str:
    """The text with a share of its words replaced."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + "x" if draw.random() < share else word for word in text.split(" "))


class Found:
    """What the pass over documents decided, by the texts' positions."""

    def __init__(self, rows: list[dict]) -> None:
        place = {row["id"]: i for i, row in enumerate(rows)}
        self.original = np.array([place[row["duplicate_of"] or row["id"]] for row in rows])
        self.similarity = np.array([row["similarity"] or 0.0 for row in rows])
        self.exact = np.array([row["step"] == "exact_duplicates" for row in rows])


@pytest.fixture
def find(tmp_path: Path):
    """find(texts, splits, **settings): the pass over documents, on parts of seven documents each."""

    def run(texts: list[str], splits: list[str] | None = None, *, exact: bool = True, **settings) -> Found:
        documents = pa.concat_tables([table(*texts), table()])
        documents = documents.set_column(
            documents.schema.get_field_index("split"), "split", pa.array(splits or ["train"] * len(texts))
        )
        return Found(decide(tmp_path, documents, exact=exact, **settings))

    return run


def decide(tmp_path: Path, documents: pa.Table, *, exact: bool = True, **settings) -> list[dict]:
    work = Path(tempfile.mkdtemp(dir=tmp_path))
    parts = parts_of(work / "local", documents, 7)
    config = NearDuplicates(**settings)
    return through(passes.documents_pass(parts, config, exact, work, lambda title, tasks: engine.run(tasks)))


def test_planted_near_duplicates_are_found_and_distinct_texts_stay(find) -> None:
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


def test_which_copy_stays(find) -> None:
    a, b = prose(1, 300), prose(2, 300)
    texts = [a, edited(a, 0.005, 1), a, b, edited(b, 0.005, 2), b]
    found = find(texts, ["train", "train", "heldout", "train", "heldout", "heldout"])
    assert found.original.tolist() == [2, 2, 2, 4, 4, 4], "the first held-out copy, in the order of the corpus"
    assert found.exact.tolist() == [True, False, False, True, False, False]


def test_clusters_join_through_a_chain(find) -> None:
    first = prose(3, 600)
    second = edited(first, 0.02, 1)
    third = edited(second, 0.02, 2)
    found = find([first, second, third], bands=32, rows=4, threshold=0.75)
    assert found.original.tolist() == [0, 0, 0]
    assert find([first, second, third], bands=32, rows=4, threshold=0.99).original.tolist() == [0, 1, 2]


def test_dropped_documents_take_no_part(tmp_path: Path) -> None:
    documents = table(prose(1), prose(1), prose(1))
    documents = documents.set_column(
        documents.schema.get_field_index("keep"), "keep", pa.array([False, True, True], pa.bool_())
    )
    assert [row["duplicate_of"] for row in decide(tmp_path, documents)] == [None, None, "d/1"]


def test_short_and_spaceless_texts(find) -> None:
    chinese = (
        "敏捷的棕色狐狸跳过了懒狗，孩子们在房子后面的花园里玩耍。今天天气很好，我们一起去公园散步，然后回家吃饭。" * 3
    )
    found = find(["one two", "one  two!", "three four", chinese, chinese.replace("天气", "空气", 1)])
    assert found.original[:3].tolist() == [0, 0, 2], "layout and punctuation do not hide a copy"
    assert twins.jaccard(chinese, chinese.replace("天气", "空气", 1), 5) > 0.8
    assert found.original[3:].tolist() == [3, 3]


def test_off_is_off(find) -> None:
    assert find([prose(1), prose(1)], enabled=False, exact=False).original.tolist() == [0, 1]
    assert find([prose(1), prose(1)], enabled=False, exact=True).original.tolist() == [0, 0]
    assert find([prose(1), prose(1)], exact=False).original.tolist() == [0, 0]


def test_a_cluster_is_compared_within_the_band_and_not_with_its_first_member_only(find) -> None:
    """b is alike to a and to c, but a and c are not: what a comparison with the first alone would miss."""
    first = prose(3, 600)
    chain = [first]
    for seed in range(4):
        chain.append(edited(chain[-1], 0.012, seed))
    assert twins.jaccard(chain[0], chain[-1], 5) < 0.7 < twins.jaccard(chain[0], chain[1], 5)
    assert find(chain, bands=32, rows=4, threshold=0.75).original.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("settings", "stays"),
    [
        ({"keep": "first"}, 0),
        ({"keep": "longest"}, 2),
        ({"keep": "source", "source_order": ["books", "web"]}, 1),
        ({"keep": "quality", "quality_column": "score"}, 3),
        ({"keep": "quality", "quality_column": "signals.score"}, 3),
    ],
)
def test_which_copy_stays_is_a_rule(tmp_path: Path, settings: dict, stays: int) -> None:
    text = prose(7, 300)
    texts = [text, text + " A.", text + " One more sentence.", text + " End."]
    scores = [0.1, None, 0.4, 0.9]
    documents = table(*texts)
    place = documents.schema.get_field_index("source")
    documents = documents.set_column(place, "source", pa.array(["web", "books", "web", "other"]))
    documents = documents.append_column("score", pa.array(scores, pa.float32()))
    documents = documents.append_column("signals", pa.array([{"score": s} for s in scores]))
    rows = decide(tmp_path, documents, **settings)
    assert [i for i, row in enumerate(rows) if row["keep"]] == [stays]
    assert {row["duplicate_of"] for row in rows if not row["keep"]} == {f"d/{stays}"}


def test_a_rule_of_exact_copies_too_and_heldout_before_all(tmp_path: Path) -> None:
    documents = table(prose(1), prose(1), prose(1))
    place = documents.schema.get_field_index("source")
    documents = documents.set_column(place, "source", pa.array(["web", "books", "web"]))
    rule = {"keep": "source", "source_order": ["books"], "enabled": False}
    assert [row["duplicate_of"] for row in decide(tmp_path, documents, **rule)] == ["d/1", None, "d/1"]
    split = documents.schema.get_field_index("split")
    documents = documents.set_column(split, "split", pa.array(["train", "train", "heldout"]))
    assert [row["duplicate_of"] for row in decide(tmp_path, documents, **rule)] == ["d/2", "d/2", None]


def test_rules_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs source_order"):
        NearDuplicates(keep="source")
    with pytest.raises(ValueError, match="needs quality_column"):
        NearDuplicates(keep="quality")
    with pytest.raises(ValueError, match="less than bands x rows"):
        NearDuplicates(permutations=100)
    with pytest.raises(Failed, match=r"quality_column: 'scor' is no column of numbers"):
        decide(tmp_path, table(prose(1)), keep="quality", quality_column="scor")


def test_more_permutations_serve_verification(find) -> None:
    a = prose(1, 400)
    found = find([a, edited(a, 0.01, 1)], permutations=512)
    alike = twins.jaccard(a, edited(a, 0.01, 1), 5)
    assert found.original.tolist() == [0, 0] and abs(found.similarity[1] - alike) < 0.08


def test_shingles_of_characters(find) -> None:
    """Chinese news, of which one sentence in four differs: alike by short shingles, less so by long ones."""
    parts = [
        "今天的天气很好我们去公园散步",
        "他在学校里学习历史和音乐",
        "火车早上八点从车站出发开往北京",
        "这本书讲的是海边小镇的故事",
    ]
    other = [*parts[:3], "老师说明天没有数学课大家都很高兴"]
    a, b = "。".join(parts) + "。", "。".join(other) + "。"
    short, long = (find([a, b], threshold=0.0, permutations=512, characters=n, bands=64, rows=1) for n in (1, 10))
    assert short.similarity[1] > long.similarity[1] > 0.3


@pytest.mark.parametrize("window", [1, 3, 300])
def test_linking_in_blocks_is_linking_at_once(window: int) -> None:
    """Blocks with the window before them find the components that one call finds."""
    draw = np.random.default_rng(0)
    n = 500
    keys = np.sort(draw.integers(0, 40, n).astype(np.uint64))
    members = np.arange(n)
    signs = draw.integers(0, 3, (n, 8)).astype(np.uint32)

    def components(block: int) -> np.ndarray:
        parent = np.arange(n)
        for begin in range(0, n, block):
            here = slice(max(0, begin - window), begin + block)
            size = len(keys[here])
            edges = np.empty(size, np.int64), np.empty(size, np.int64)
            kernels.link(
                keys[here], members[here], np.arange(size), signs[here], parent, begin - here.start, 0.5, window, *edges
            )
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        return parent

    assert np.array_equal(components(n), components(7))
    assert len(np.unique(components(n))) < n


def test_the_answer_does_not_depend_on_ranges_parts_or_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = [prose(seed, 150) for seed in range(12)]
    texts = [edited(base[i % 12], 0.01 * (i // 12), i) for i in range(60)]
    expected = [row["duplicate_of"] for row in decide(tmp_path, table(*texts))]
    assert sum(name is not None for name in expected) > 30
    monkeypatch.setattr(dedup, "BLOCK", 5)
    monkeypatch.setattr(shuffle, "RANGE_BYTES", 100)
    monkeypatch.setattr(shuffle, "RUN_BYTES", 1000)
    assert [row["duplicate_of"] for row in decide(tmp_path, table(*texts))] == expected
