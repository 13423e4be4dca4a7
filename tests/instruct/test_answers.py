"""Exact match with its interval; unparsed apart from wrong."""

from lmlab import measure
from lmlab.instruct.answers import exact_match, judge, verdicts
from lmlab.instruct.families import draw_distinct, make

MADE = make(["copy", "count"])


def test_outputs_are_judged_by_the_items_family() -> None:
    items = [item for family in MADE.values() for item in draw_distinct(family, "test", 0, 3)]
    outputs = [items[0].target, "other words", "1 2", items[3].target, "words", "1234"]
    judged = judge(MADE, items, outputs)
    assert [row.verdict for row in judged] == ["right", "wrong", "unparsed", "right", "unparsed", "wrong"]
    assert verdicts(judged) == {"right": 2, "wrong": 2, "unparsed": 2}
    assert exact_match(judged) == measure.proportion(2, 6)
    assert judged[4].to_json() == {
        "id": items[4].id,
        "family": "count",
        "prompt": items[4].prompt,
        "answer": items[4].answer,
        "output": "words",
        "parsed": None,
        "verdict": "unparsed",
    }


def test_of_nothing_nothing_is_known() -> None:
    assert exact_match([]) == measure.Score(0.0, 0.0, 1.0, 0)
