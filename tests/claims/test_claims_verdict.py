"""The verdict's rule as properties, and the smallest visible effect against simulated t tests."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.claims.verdict import judge, paired, power_of, smallest_visible, standardised, together
from lmlab.measure import Score
from lmlab.report.scores import over_seeds, student

numbers = st.floats(-10, 10, allow_nan=False)
matter = st.floats(1e-3, 5)


@st.composite
def scores(draw):
    value, below, above = draw(numbers), draw(st.floats(0, 10)), draw(st.floats(0, 10))
    return Score(value, value - below, value + above, 5)


def turned(score: Score) -> Score:
    return Score(-score.value, -score.high, -score.low, score.n)


@given(scores(), matter)
def test_worse_is_better_turned_round_and_not_both_hold(score, matters):
    assert judge(score, "worse", matters) == judge(turned(score), "better", matters)
    assert {judge(score, "worse", matters), judge(score, "better", matters)} != {"supported"}


@given(scores(), matter, st.sampled_from(["better", "worse", "as good"]), st.integers(-8, 8))
def test_the_unit_does_not_matter(score, matters, claimed, power):
    factor = 2.0**power  # exact, so that no comparison is decided by rounding
    scaled = Score(factor * score.value, factor * score.low, factor * score.high, score.n)
    assert judge(scaled, claimed, factor * matters) == judge(score, claimed, matters)


@given(scores(), matter, st.floats(0, 20), st.sampled_from(["better", "as good"]))
def test_more_advantage_never_makes_a_verdict_worse(score, matters, more, claimed):
    order = ["not supported", "undecided", "supported"]
    moved = Score(score.value + more, score.low + more, score.high + more, score.n)
    assert order.index(judge(moved, claimed, matters)) >= order.index(judge(score, claimed, matters))


@given(matter, st.floats(0, 20), st.floats(0.01, 1), st.floats(0, 20))
def test_what_is_better_by_what_matters_is_as_good(matters, more, share, above):
    value = matters + more
    score = Score(value, value * share, value + above, 5)
    assert judge(score, "better", matters) == judge(score, "as good", matters) == "supported"


@given(numbers, matter, st.sampled_from(["better", "worse", "as good"]))
def test_one_pair_decides_nothing(value, matters, claimed):
    assert judge(over_seeds([value]), claimed, matters) == "undecided"


@pytest.mark.parametrize(
    ("low", "value", "high", "claimed", "verdict"),
    [
        (0.01, 0.03, 0.05, "better", "supported"),
        (0.001, 0.01, 0.019, "better", "not supported"),  # there, but less than matters
        (0.001, 0.015, 0.03, "better", "undecided"),
        (-0.01, 0.03, 0.07, "better", "undecided"),
        (-0.05, -0.03, -0.01, "better", "not supported"),
        (-0.05, -0.03, -0.01, "worse", "supported"),
        (-0.019, -0.01, 0.0, "as good", "supported"),
        (-0.05, -0.03, -0.01, "as good", "not supported"),
        (-0.05, -0.01, 0.03, "as good", "undecided"),
    ],
)
def test_the_rule_by_example(low, value, high, claimed, verdict):
    assert judge(Score(value, low, high, 5), claimed, 0.02) == verdict


def test_several_comparisons():
    assert together(["supported", "supported"]) == "supported"
    assert together(["supported", "undecided"]) == "undecided"
    assert together(["undecided", "not supported", "supported"]) == "not supported"


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_smallest_visible_effect_is_seen_with_its_power(n):
    """Simulated paired t tests: 40,000 draws, so a standard error of 0.2 points."""
    rng = np.random.default_rng(n)
    for power in (0.5, 0.8, 0.95):
        x = rng.standard_normal((40_000, n)) + standardised(n, power)
        t = x.mean(axis=1) / (x.std(axis=1, ddof=1) / math.sqrt(n))
        assert abs((t > student(n - 1)).mean() - power) < 0.01
    assert power_of(0.0, n) == pytest.approx(0.025, abs=2e-4)


def test_the_smallest_visible_effect_is_in_the_units_of_the_spread():
    differences = [0.01, 0.03, 0.02, 0.05, 0.0]
    assert smallest_visible([10 * each for each in differences]) == pytest.approx(10 * smallest_visible(differences))
    assert smallest_visible([0.1]) == math.inf


def test_a_null_is_seldom_supported():
    """Two equal arms of 5 seeds, 4,000 times: one-sided false alarms at most 2.5%, and fewer since a difference must matter."""
    rng = np.random.default_rng(0)
    verdicts = [judge(paired(a, b, True), "better", 0.02) for a, b in rng.normal(0, 0.01, (4000, 2, 5))]
    assert verdicts.count("supported") / 4000 < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 4000)


def test_the_better_side_follows_the_measure():
    assert paired([1.0, 2.0], [1.5, 2.5], True).value == 0.5
    assert paired([1.0, 2.0], [1.5, 2.5], False).value == -0.5
