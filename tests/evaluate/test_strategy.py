"""Strategies: names, composition, the vote's laws."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.errors import Refused
from lmlab.evaluate.strategy import Cot, Shots, Strategy, Vote, compose, parse, sample_seed
from lmlab.evaluate.tasks import family_tasks
from lmlab.instruct import families as kinds

ANSWERS = st.lists(st.sampled_from(["1", "2", "3", None]), max_size=9)
TASKS = family_tasks(kinds.make(["copy", "arithmetic"]), [], 0)


@given(ANSWERS, st.randoms())
def test_the_vote_does_not_depend_on_the_order_but_for_ties(answers, random):
    vote = Vote(8)
    shuffled = list(answers)
    random.shuffle(shuffled)
    won = [None if (place := vote.reduce(each)) is None else each[place] for each in (answers, shuffled)]
    counts = Counter(answer for answer in answers if answer is not None)
    best = max(counts.values(), default=0)
    leaders = [answer for answer, count in counts.items() if count == best]
    if len(leaders) == 1:
        assert won[0] == won[1] == leaders[0]
    else:
        assert all(each in leaders if leaders else each is None for each in won)


@given(ANSWERS)
def test_ties_go_to_the_first_seen_and_unparsed_never_win(answers):
    place = Vote(8).reduce(answers)
    counts = Counter(answer for answer in answers if answer is not None)
    if place is None:
        assert not counts
        return
    assert answers[place] is not None
    assert answers.index(answers[place]) == place
    rivals = [answer for answer, count in counts.items() if count == counts[answers[place]]]
    assert place == min(answers.index(rival) for rival in rivals)


def test_unparsed_outputs_do_not_vote_however_many():
    assert Vote(5).reduce([None, None, None, "4", None]) == 3


@given(st.permutations([Shots(4), Cot(), Vote(8)]))
def test_parts_compose_in_any_order(parts):
    assert compose(*parts).name(TASKS["arithmetic"]) == "shots=4/steps/vote=8"


def test_names_are_read_back():
    for strategy in (Strategy(), Strategy(Shots(1), Cot()), Strategy(Shots(4), None, Vote(8))):
        assert parse(strategy.name(TASKS["arithmetic"]).split("/")) == strategy
    assert Strategy().name(TASKS["copy"]) == "shots=0/greedy"  # nothing said of steps where there are none


@pytest.mark.parametrize(
    "words", [["shots=x"], ["vote=0"], ["cot"], ["steps", "direct"], ["shots=1", "shots=2"], ["greedy", "vote=3"]]
)
def test_other_words_are_refused(words):
    with pytest.raises(Refused):
        parse(words)


def test_sample_seeds_are_apart():
    seeds = {sample_seed(seed, item, n) for seed in range(3) for item in ("a", "b") for n in range(8)}
    assert len(seeds) == 48
