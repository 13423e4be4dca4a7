"""Rule-based feedback: what the rules reward, and that their order is the documented one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmlab.align.losses import untied_pairs
from lmlab.align.rules import Marks, RulesConfig, difference, mark, rank
from lmlab.instruct.families import FAMILIES, Item

COPY = FAMILIES["copy"]()
ITEM = Item("copy", "Copy: red error box", "red error box", key="red error box")
RULES = RulesConfig()


def judged(output: str, finished: bool = True) -> Marks:
    return mark(RULES, COPY, ITEM, output, finished)


def test_the_right_answer_is_perfect() -> None:
    assert judged("red error box") == Marks(1.0, 1.0, 1.0, 1.0)


def test_correct_before_wrong_short_before_long_no_forbidden_words() -> None:
    longer = judged("I think that it is this. Answer: red error box")
    assert longer.correctness == 1 and longer.length < 1
    wrong, rambling, forbidden = judged("blue"), judged("blue " * 20), judged("unknown")
    scores = [each.score for each in (judged("red error box"), longer, wrong, rambling, forbidden)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 5
    assert [difference(longer, wrong), difference(wrong, forbidden), difference(wrong, rambling)] == [
        "correctness", "forbidden", "length",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not told apart"):
        difference(wrong, wrong)


def test_a_forbidden_word_is_forgiven_where_the_right_answer_holds_it() -> None:
    assert judged("error").forbidden == 1
    assert judged("a Sorry box").forbidden == 0, "whatever its case"
    assert judged("sorryness errors").forbidden == 1, "whole words only"


def test_an_answer_that_was_cut_off_is_not_correct() -> None:
    assert judged("red error box", finished=False).correctness == 0


def test_shorter_than_the_right_answer_earns_nothing() -> None:
    assert judged("").length == judged("red").length == 1.0


@given(st.booleans(), st.booleans(), st.floats(0.001, 1), st.booleans(), st.booleans(), st.floats(0.001, 1))
def test_the_default_order_is_lexicographic(a1: bool, a2: bool, a3: float, b1: bool, b2: bool, b3: float) -> None:
    """As tuples (correct, clean, brief) compare, so do the weighted scores."""

    def score(correct: bool, clean: bool, brief: float) -> float:
        return RULES.correctness * correct + RULES.forbidden * clean + RULES.length * brief

    if (a1, a2, a3) > (b1, b2, b3):
        assert score(a1, a2, a3) > score(b1, b2, b3) or a3 - b3 < 1e-9
    assert RULES.correctness > RULES.forbidden + RULES.length and RULES.forbidden > RULES.length


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.sampled_from([0.01, 0.1, 0.5]))
@settings(deadline=None)
def test_ranks(scores: list[float], resolution: float) -> None:
    """From 1 without gaps; a better rank is never a worse score, and far scores never tie."""
    ranks = rank(scores, resolution)
    assert set(ranks) == set(range(1, max(ranks) + 1))
    for i, j in itertools.combinations(range(len(scores)), 2):
        if ranks[i] < ranks[j]:
            assert scores[i] > scores[j]
        if abs(scores[i] - scores[j]) > 1.5 * resolution:
            assert ranks[i] != ranks[j]
    assert len(untied_pairs(ranks)) == sum(a != b for a, b in itertools.combinations(ranks, 2))


def test_weights_must_leave_a_rule() -> None:
    with pytest.raises(ValidationError, match="weight above 0"):
        RulesConfig(correctness=0, forbidden=0, length=0)
