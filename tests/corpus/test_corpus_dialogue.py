"""Reply trees become conversations: every leaf once, nothing twice, whatever the order of the messages and their shape."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.corpus.readers import Limits
from lmlab.corpus.readers.dialogue import Message, conversations
from lmlab.corpus.source import Dialogue
from tests.corpus import samples
from tests.corpus.samples import passed, read, records, rejects, texts


def comment(name: str, parent: str, body: str, author: str = "ann", score: int = 1, tree: str = "t3_s1") -> dict:
    return {"id": name, "parent_id": parent, "link_id": tree, "body": body, "author": author, "score": score}


def submission(name: str, title: str) -> dict:
    return {"id": name, "title": title, "selftext": "", "score": 9, "is_self": True, "url": "", "author": "root"}


TREE = [
    comment("c3", "t1_c1", "third", "cem", 7),
    comment("c1", "t3_s1", "first", "ann", 5),
    comment("c2", "t1_c1", "second", "root", 2),
    comment("c4", "t1_c3", "fourth", "ann", 1),
    comment("c5", "t1_gone", "orphan", "dan"),
    comment("c6", "t1_c5", "below the orphan", "eve"),
    comment("c7", "t3_s1", "[deleted]", "[deleted]"),
    comment("c8", "t1_c7", "below a removed one", "fay"),
]


def test_comments_and_submissions_of_two_files_join(tmp_path: Path) -> None:
    samples.write_lines(tmp_path / "RC_2019-04.zst", TREE)
    samples.write_lines(tmp_path / "RS_2019-04.zst", [submission("s1", "What now?"), submission("s2", "Alone")])
    items = read(tmp_path, reader="dialogue")
    assert texts(items) == [
        "A: What now?\n\nB: first\n\nA: second",
        "A: What now?\n\nB: first\n\nC: third\n\nB: fourth",
    ]
    assert {record.unit for record in records(items)} == {"conversations#t3_s1"}, "a tree is on one side of the split"
    assert Counter(passed(items)) == {
        "removed message": 1,
        "reply to a message that is not here": 3,
        "conversation of fewer than 2 turns": 1,
    }
    # Without the submissions, the comments at the top are roots.
    (tmp_path / "RS_2019-04.zst").unlink()
    assert texts(read(tmp_path)) == ["A: first\n\nB: second", "A: first\n\nB: third\n\nA: fourth"]


@pytest.mark.parametrize(("paths", "wanted"), [("best", "first third fourth"), ("longest", "first third fourth")])
def test_one_path_a_root(tmp_path: Path, paths: str, wanted: str) -> None:
    path = samples.write_lines(tmp_path / "RC_2019-04.zst", TREE)
    (found,) = texts(read(path, dialogue={"paths": paths}))
    assert [turn.split(": ")[1] for turn in found.split("\n\n")] == wanted.split()


def test_other_field_names_and_scores(tmp_path: Path) -> None:
    rows = [
        {"message_id": "a", "parent_id": None, "message_tree_id": "a", "text": "hi", "role": "prompter"},
        {"message_id": "b", "parent_id": "a", "message_tree_id": "a", "text": "hello", "role": "assistant"},
        {"message_id": "c", "parent_id": "a", "message_tree_id": "a", "role": "assistant"},
    ]
    path = samples.write_lines(tmp_path / "trees.jsonl.gz", rows)
    names = {"id_field": "message_id", "tree_field": "message_tree_id", "text_field": "text", "author_field": "role"}
    items = read(path, reader="dialogue", dialogue=names)
    assert texts(items) == ["A: hi\n\nB: hello"]
    assert rejects(items)[0].line == 3 and "'text'" in rejects(items)[0].reason


def test_circles_and_very_deep_trees_are_safe(tmp_path: Path) -> None:
    circle = [
        comment("x", "t1_y", "x"),
        comment("y", "t1_x", "y"),
        comment("z", "t1_z", "z"),
        comment("w", "t1_x", "w"),
    ]
    deep = [comment("0", "t3_s2", "0", tree="t3_s2")]
    deep += [comment(str(i), f"t1_{i - 1}", str(i), tree="t3_s2") for i in range(1, 50_000)]
    random.Random(1).shuffle(deep)
    path = samples.write_lines(tmp_path / "RC_2019-04.zst", [*circle, *deep])
    items = read(path, dialogue={"turns": 10})
    assert [text.count("\n\n") + 1 for text in texts(items)] == [10]
    assert Counter(passed(items)) == {"replies in a circle": 4, "message past 10 turns": 49_990}


def test_a_tree_with_many_leaves_gives_at_most_so_many(tmp_path: Path) -> None:
    wide = [comment("r", "t3_s1", "root")] + [comment(f"l{i}", "t1_r", f"leaf {i}", score=i) for i in range(100)]
    path = samples.write_lines(tmp_path / "RC_2019-04.zst", wide)
    items = read(path, dialogue={"most": 3})
    assert [text.rsplit(" ", 1)[1] for text in texts(items)] == ["99", "98", "97"]
    assert Counter(passed(items)) == {"conversation past the first 3 of its tree": 97}


def test_a_tree_too_large_for_memory_keeps_its_beginning(tmp_path: Path) -> None:
    rows = [comment("0", "t3_s1", "x" * 500)] + [comment(str(i), "t1_0", "y" * 500) for i in range(1, 40)]
    path = samples.write_lines(tmp_path / "RC_2019-04.zst", rows)
    items = read(path, Limits(record=2000), dialogue={"most": 1000})
    assert 5 < len(texts(items)) < 20
    assert any(reason.startswith("message past 8,000 bytes") for reason in passed(items))


@given(st.data())
def test_every_leaf_that_a_root_reaches_ends_one_conversation(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 25))
    parents = data.draw(st.lists(st.one_of(st.none(), st.integers(0, n + 2)), min_size=n, max_size=n))
    messages = [Message("t", str(i), None if p is None else str(p), "a", f"m{i}", i) for i, p in enumerate(parents)]
    counts: Counter[str] = Counter()
    settings = Dialogue(most=1000, turns=1000, min_turns=1)
    found = conversations("t", messages, settings, counts)

    def reached(i: int) -> bool:  # an independent walk up
        seen = set()
        while i not in seen:
            seen.add(i)
            if parents[i] is None:
                return True
            if not 0 <= parents[i] < n:  # type: ignore[operator]
                return False
            i = parents[i]  # type: ignore[assignment]
        return False

    leaves = {i for i in range(n) if reached(i) and i not in parents}
    assert sorted(int(path[-1].id) for path in found) == sorted(leaves)
    for path in found:
        assert path[0].parent is None
        assert all(after.parent == before.id for before, after in zip(path, path[1:], strict=False))
    lost = counts["reply to a message that is not here"] + counts["replies in a circle"]
    assert lost == sum(not reached(i) for i in range(n))
