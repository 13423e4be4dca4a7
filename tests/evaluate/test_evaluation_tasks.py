"""Tasks: demonstrations never hold a test item, held-out text is cut at whole characters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.evaluate.strategy import Cot, Shots, Strategy
from lmlab.evaluate.tasks import cut, family_tasks, held_out_text
from lmlab.instruct import families as kinds


@pytest.mark.parametrize("name", kinds.FAMILIES)
def test_demonstrations_are_training_items_and_a_function_of_the_item(name):
    task = family_tasks(kinds.make([name]), kinds.HELD_OUT, 0)[name]
    few, many = task.data.test(3), task.data.test(8)
    assert many[:3] == few
    assert all(item.split == "test" for item in many)
    assert len({item.id for item in many}) == 8
    for item in many:
        shown = task.data.shown(item, 4, task.has_steps)
        assert shown == family_tasks(kinds.make([name]), kinds.HELD_OUT, 0)[name].data.shown(item, 4, task.has_steps)
        assert shown[:2] == task.data.shown(item, 2, task.has_steps)
        assert all(each.split == "train" for each in shown)
        keys = [item.key, *(each.key for each in shown)]
        assert len(set(keys)) == 5
    assert task.group == ("unseen" if name in kinds.HELD_OUT else "seen")


def test_steps_reach_question_and_demonstrations():
    task = family_tasks(kinds.make(["arithmetic"]), [], 0)["arithmetic"]
    item = task.data.test(1)[0]
    with_steps = Strategy(Shots(2), Cot()).ask(task, item, 2)
    without = Strategy(Shots(2)).ask(task, item, 2)
    assert [turn["role"] for turn in with_steps] == ["user", "assistant"] * 2 + ["user"]
    assert all(kinds.SHOW_STEPS in turn["content"] for turn in with_steps[::2])
    assert all(kinds.ANSWER_ONLY in turn["content"] for turn in without[::2])
    assert all("Steps:" in turn["content"] for turn in with_steps[1::2])
    assert not any("Steps:" in turn["content"] for turn in without)


@settings(max_examples=50)
@given(st.text(max_size=30), st.integers(-1, 60))
def test_cut_is_a_beginning_of_whole_characters(text, size):
    safe = text.encode("utf-8", "replace").decode("utf-8")
    short = cut(text, size)
    assert safe.startswith(short)
    assert len(short.encode()) <= max(0, size)
    assert len(safe.encode()) <= max(0, size) or len(short.encode()) > size - 4


def test_held_out_text_keeps_to_its_limits_whatever_the_order():
    documents = [{"id": f"doc{i}", "text": "é" * 40 if i % 3 else ""} for i in range(30)]
    text = held_out_text(documents, 500, 64)
    assert text == held_out_text(documents[::-1], 500, 64)
    assert all(0 < passage.bytes <= 64 for passage in text.passages)
    assert 490 < sum(passage.bytes for passage in text.passages) <= 500
