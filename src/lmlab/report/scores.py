"""Scores as they stand in results.json: found anywhere, read leniently, compared by interval, written for people.

A score on disk is `{value, low, high, n}`; a null end is an unbounded one, and a null value is a missing score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmlab.measure import Score

KEYS = frozenset(("value", "low", "high", "n"))
PERCENT = (
    "exact_match",
    "accuracy",
    "share",
    "fraction",
    "end_rate",
    "correct",
    "best_is_best",
    "baselines",
    "by_reason",
)
"""Words in a measure's name that mark it as a share, shown in per cent."""

# Two-sided 95% quantiles of Student's t by degrees of freedom 1..10 (any table of the distribution).
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def number(value: Any) -> float | None:
    """A finite number, or None: a flag, a text or a NaN is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def is_score(value: Any) -> bool:
    """Whether a JSON value is a score object."""
    return isinstance(value, Mapping) and value.keys() >= KEYS


def score(value: Any) -> Score | None:
    """The Score of a JSON value, or None where there is none or its value is missing."""
    if not is_score(value) or (middle := number(value["value"])) is None:
        return None
    low, high, n = number(value["low"]), number(value["high"]), number(value["n"])
    return Score(middle, -math.inf if low is None else low, math.inf if high is None else high, int(n or 0))


def at(tree: Any, *path: str) -> Any:
    """The value at a path of keys in nested mappings, or None where any of them is absent."""
    for key in path:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def find(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Score]]:
    """Every score in nested mappings, with its path, in the order written. The tree itself is never one: it has no name."""
    if path and is_score(tree):
        found = score(tree)
        if found is not None:
            yield path, found
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from find(value, (*path, str(key)))


def above(a: Score, b: Score | float) -> bool | None:
    """Whether a is above b: True or False where their intervals lie apart, None (undecided) where they meet.

    Two 95% intervals that do not overlap differ at a level well under 5%, so this errs towards undecided.
    """
    low, high = (b.low, b.high) if isinstance(b, Score) else (b, b)
    if a.low > high:
        return True
    return False if a.high < low else None


def over_seeds(values: Sequence[float]) -> Score:
    """Mean over seeds with Student's t interval (Student 1908); of one seed the interval is unbounded."""
    n = len(values)
    middle = math.fsum(values) / n
    if n == 1:
        return Score(middle, -math.inf, math.inf, 1)
    half = student(n - 1) * spread(values) / math.sqrt(n)
    return Score(middle, middle - half, middle + half, n)


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation, 0 for a single value."""
    n = len(values)
    middle = math.fsum(values) / n
    return math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (n - 1)) if n > 1 else 0.0


def student(freedom: int) -> float:
    """Two-sided 95% quantile of Student's t; past the table, Cornish and Fisher's expansion (error under 1e-3)."""
    if freedom <= len(T95):
        return T95[freedom - 1]
    z = 1.959963984540054
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def is_percent(path: Sequence[str]) -> bool:
    """Whether the measure at this path is a share that reads best in per cent."""
    return any(word in part for part in path for word in PERCENT)


def plain(value: float, percent: bool = False) -> str:
    """A number for people: per cent with one decimal, counts with commas, else about four significant digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if percent:
        return f"{100 * value:.1f}%"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.1f}"
    if abs(value) >= 0.1:
        return f"{value:.3f}"
    return f"{value:.3g}"


def value_of(it: Score, percent: bool = False) -> str:
    """A score's value for people: not a count, so always with its decimals."""
    whole = math.isfinite(it.value) and it.value == int(it.value)
    return f"{it.value:.3f}" if whole and not percent else plain(it.value, percent)


def interval(it: Score, percent: bool = False) -> str:
    """`low to high` in the score's own unit; an unbounded end is said."""
    if math.isinf(it.low) and math.isinf(it.high):
        return "no interval"
    ends = [
        value_of(Score(end, end, end, 0), percent) if math.isfinite(end) else plain(end) for end in (it.low, it.high)
    ]
    return f"{ends[0].removesuffix('%')} to {ends[1]}"


def tell(it: Score | None, percent: bool = False) -> str:
    """A score in a sentence: `71.2% [68.9 to 73.4%] (n = 1,500)`."""
    if it is None:
        return "not measured"
    return f"{value_of(it, percent)} [{interval(it, percent)}] (n = {it.n:,})"


def tell_change(it: Score, percent: bool = False) -> str:
    """A difference in a sentence: of shares in points, with its sign."""
    scale, unit = (100.0, " points") if percent else (1.0, "")
    value, low, high = (f"{scale * end:+.{1 if percent else 3}f}" for end in (it.value, it.low, it.high))
    return f"{value}{unit} [{low} to {high}] (n = {it.n:,})"


def duration(seconds: float | None) -> str:
    """Seconds for people: `8.4 s`, `4 min 12 s`, `2 h 5 min`."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
