"""Intervals: they hold the value, shrink with n, and cover what they say."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lmlab import measure


@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_holds_the_share_and_stays_inside(k, n):
    score = measure.proportion(min(k, n), n)
    assert 0 <= score.low <= score.value <= score.high <= 1 and score.n == n


def test_wilson_known_value():
    score = measure.proportion(8, 10)
    assert math.isclose(score.low, 0.4901, abs_tol=1e-3) and math.isclose(score.high, 0.9433, abs_tol=1e-3)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_bootstrap_holds_the_mean_and_is_reproducible(values):
    first, second = measure.mean(values), measure.mean(values)
    assert first == second and first.low <= first.value <= first.high


def test_bootstrap_covers_about_95_percent():
    random = np.random.default_rng(0)
    inside = 0
    for index in range(200):
        score = measure.mean(random.normal(size=60), resamples=400, seed=index)
        inside += score.low <= 0 <= score.high
    assert 180 <= inside <= 199


def test_ratio_weighs_units_by_their_size():
    assert measure.ratio([2, 30], [1, 10]).value == 32 / 11


def test_one_unit_has_no_interval_in_json():
    assert measure.mean([1.0]).to_json() == {"value": 1.0, "low": None, "high": None, "n": 1}
