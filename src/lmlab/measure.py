"""Every number says how sure it is: a `Score` is a value, its 95% interval and the n behind it.

numpy only, so that every floor may use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """A measured number. `low` and `high` bound the 95% interval; `n` counts the independent units behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """The four keys; an unbounded or undefined end is null, since JSON has no infinity."""
        return {key: number if math.isfinite(number) else None for key, number in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"


def proportion(successes: float, n: int) -> Score:
    """Wilson's interval for a share of `n` independent trials (Wilson 1927). With n = 0 the interval is [0, 1]."""
    if n == 0:
        return Score(0.0, 0.0, 1.0, 0)
    p = successes / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Score(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def mean(values: Sequence[float] | np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Score:
    """Mean with a percentile bootstrap interval over the values (Efron 1979)."""
    array = np.asarray(values, dtype=np.float64)
    return ratio(array, np.ones_like(array), resamples=resamples, seed=seed)


def ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Score:
    """sum(numerators) / sum(denominators), its interval by resampling the units (documents, prompts) in pairs.

    This is the right interval for bits per byte: documents are the independent units, bytes are not.
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if top.shape != bottom.shape or top.ndim != 1:
        raise ValueError(f"expected two vectors of one length, got {top.shape} and {bottom.shape}")
    n = len(top)
    if n == 0:
        return Score(math.nan, math.nan, math.nan, 0)
    value = float(top.sum() / bottom.sum())
    if n == 1:
        return Score(value, -math.inf, math.inf, 1)
    generator = np.random.Generator(np.random.Philox(key=seed))
    means = np.empty(resamples)
    rows = max(1, (1 << 22) // n)  # draws in memory at a time
    for start in range(0, resamples, rows):
        draws = generator.integers(0, n, size=(min(rows, resamples - start), n))
        means[start : start + rows] = top[draws].sum(axis=1) / bottom[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Score(value, float(min(low, value)), float(max(high, value)), n)


def difference(after: Sequence[float] | np.ndarray, before: Sequence[float] | np.ndarray, *, seed: int = 0) -> Score:
    """Mean of after - before, paired by position, with its bootstrap interval."""
    return mean(np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64), seed=seed)
