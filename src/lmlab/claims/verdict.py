"""The rule by which every claim is judged, and the smallest effect that a design could have seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lmlab.measure import Score
from lmlab.report.scores import over_seeds, spread, student

Claimed = Literal["better", "worse", "as good"]
Verdict = Literal["supported", "not supported", "undecided"]


def judge(advantage: Score, claimed: Claimed, matters: float) -> Verdict:
    """The verdict on what is claimed of the second arm, from its `advantage` over the first with its 95% interval (positive
    is better) and the smallest advantage that `matters`, stated before any run.

    better     supported: the interval lies above 0 and the advantage is at least what matters.
               not supported: the interval lies below what matters, so that an advantage worth having is excluded.
    worse      the same of the disadvantage.
    as good    supported: a disadvantage that matters is excluded (non-inferiority). not supported: the interval lies
               below 0, and the disadvantage matters.

    Everything else, and an interval that is not bounded, is undecided.
    """
    if claimed == "worse":
        advantage = Score(-advantage.value, -advantage.high, -advantage.low, advantage.n)
    if not (math.isfinite(advantage.low) and math.isfinite(advantage.high)):
        return "undecided"
    if claimed == "as good":
        if advantage.low > -matters:
            return "supported"
        return "not supported" if advantage.high < 0 and advantage.value <= -matters else "undecided"
    if advantage.low > 0 and advantage.value >= matters:
        return "supported"
    return "not supported" if advantage.high < matters else "undecided"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of a claim with several comparisons: supported where all are (each at its own 5%: the intersection-union test of
    Berger 1982 needs no correction), not supported where one is not."""
    if "not supported" in verdicts:
        return "not supported"
    return "supported" if all(each == "supported" for each in verdicts) else "undecided"


def paired(first: Sequence[float], second: Sequence[float], higher_is_better: bool) -> Score:
    """How much better the second arm is: mean over seeds of the paired difference with Student's 95% interval."""
    sign = 1.0 if higher_is_better else -1.0
    return over_seeds([sign * (b - a) for a, b in zip(first, second, strict=True)])


def smallest_visible(differences: Sequence[float], power: float = 0.8) -> float:
    """The effect that a two-sided paired t test at 5% finds with this power, were the true spread of differences the one
    measured; infinite for fewer than two."""
    n = len(differences)
    return math.inf if n < 2 else standardised(n, power) * spread(differences)


def standardised(n: int, power: float = 0.8) -> float:
    """The same in standard deviations, of n pairs: the root of `power_of` (bisection)."""
    low, high = 0.0, 1e3
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power_of(middle, n) < power else (low, middle)
    return high


def power_of(effect: float, n: int) -> float:
    """P(t > the 97.5% quantile) where t = (Z + effect sqrt(n)) / sqrt(V / (n - 1)), Z normal and V chi-squared with n - 1
    degrees of freedom: the noncentral t of a paired test of n pairs, by quadrature over s = sqrt(V / (n - 1)). The other
    tail, under 2.5% and vanishing with the effect, is left out."""
    freedom = n - 1
    s = np.linspace(1e-6, 1 + 12 / math.sqrt(2 * freedom), 4001)
    density = np.exp((freedom - 1) * np.log(s) - freedom * s * s / 2)
    above = 0.5 * _erfc((student(freedom) * s - effect * math.sqrt(n)) / math.sqrt(2))
    return float((density * above).sum() / density.sum())


_erfc = np.vectorize(math.erfc, otypes=[float])
