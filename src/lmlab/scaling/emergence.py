"""Whether an ability comes suddenly with scale, or the metric makes it look so (2206.07682 against 2304.15004).

A metric's means over log scale are fitted by smooth curves (polynomials of degree 1 to 3) and by curves with a change-point:
flat and then a line, and flat, a line, flat. `advantage` is how much smaller the Bayesian information criterion (Schwarz 1978) of
the best curve with a change-point is than that of the best smooth one. The same is done with the units (items or seeds) drawn
again with replacement, or, of fewer than five, with the residuals of the better curve.

    flat     the mean of the largest third of the scales lies on the same side of that of the smallest third in fewer than
             95% of the resamples
    sharp    advantage at least 2, and above 0 in at least 90% of the resamples
    smooth   advantage at most -2, and above 0 in at most 10% of them
    unclear  anything between
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import Refused
from lmlab.measure import difference, mean
from lmlab.scaling.table import check_columns, number, table

FEWEST = 6
"""Scales: a change-point, a level, a slope and what is left over."""
STRONG = 2.0
"""Of a difference of the criterion: "positive" evidence (Kass and Raftery 1995)."""
SURE = 0.9
MOVES = 0.95
UNITS = 5
"""With fewer items or seeds than this, residuals are drawn again instead."""
VERDICTS = {
    ("sharp", "smooth"): "sharp in the hard metric only",
    ("sharp", "sharp"): "sharp in both",
    ("smooth", "smooth"): "smooth in both",
}


@dataclass(frozen=True)
class Table:
    """Rows of one family and task: `scale` (R,), `unit` (R,) item or seed, and a column of values a metric."""

    scale: np.ndarray
    unit: list[str]
    values: Mapping[str, np.ndarray]

    @property
    def scales(self) -> np.ndarray:
        """(S,) growing."""
        return np.unique(self.scale)

    def grid(self, metric: str) -> np.ndarray:
        """(S, U) a unit's mean at each scale; NaN where it is missing."""
        units = {name: place for place, name in enumerate(dict.fromkeys(self.unit))}
        rows = np.searchsorted(self.scales, self.scale)
        columns = np.array([units[name] for name in self.unit])
        total, count = (np.zeros((len(self.scales), len(units))) for _ in range(2))
        np.add.at(total, (rows, columns), self.values[metric])
        np.add.at(count, (rows, columns), 1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def read(
    path: Path,
    scale: str,
    metrics: Sequence[str],
    *,
    unit: str | None = None,
    by: Sequence[str] = (),
    blank: Sequence[str] = (),
) -> dict[tuple[str, ...], Table]:
    """Rows of a CSV file by the values of the columns `by` (family, task). Scales may be written 70m. Without a `unit` the rows
    of a scale are its units in their order. Of the metrics those in `blank` may be blank, and are NaN there. Refused where a
    column or a number is missing, or there are under six scales.
    """
    with table(path, "a CSV file with a header, one row a model, or a row a model and item") as (reader, header):
        check_columns(path, header, [scale, *metrics, *by, *([unit] if unit else [])])
        groups: dict[tuple[str, ...], list[tuple[float, str, list[float]]]] = {}
        seen: dict[tuple[tuple[str, ...], float], int] = {}
        for row in reader:
            where = f"{path}:{reader.line_num}: "
            key, at = tuple(row[each] or "" for each in by), number(row[scale] or "", f"{where}{scale}")
            turn = seen[key, at] = seen.get((key, at), -1) + 1
            values = [_number(row[each] or "", f"{where}{each}", each in blank) for each in metrics]
            groups.setdefault(key, []).append((at, row[unit] or "" if unit else str(turn), values))
    for key, rows in groups.items():
        found = len({row[0] for row in rows})
        if found < FEWEST:
            raise Refused(
                f"{path}: {', '.join(key) or 'the table'} has {found} scales; expected at least {FEWEST}: fewer cannot tell a "
                "change-point from a curve"
            )
    if not groups:
        raise Refused(f"{path}: has no rows")
    return {
        key: Table(
            np.array([row[0] for row in rows]),
            [row[1] for row in rows],
            {name: np.array([row[2][place] for row in rows]) for place, name in enumerate(metrics)},
        )
        for key, rows in groups.items()
    }


def _number(text: str, where: str, may_be_blank: bool) -> float:
    if may_be_blank and text == "":
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused(f"{where}: '{text or ''}' is no number")
    return value


def _project(design_SP: np.ndarray, y_SB: np.ndarray) -> np.ndarray:
    """(S, B) the least-squares curve of each of B columns."""
    basis, _ = np.linalg.qr(design_SP)
    return basis @ (basis.T @ y_SB)


@dataclass(frozen=True)
class Curve:
    """A linear model of S means: its design (S, P), its parameters (a change-point is one), and where that point lies."""

    design: np.ndarray
    parameters: int
    start: float = math.nan


def _smooth(x: np.ndarray) -> list[Curve]:
    return [Curve(np.vander(x, degree + 1), degree + 1) for degree in (1, 2, 3) if degree + 3 <= len(x)]


def _changing(x: np.ndarray) -> list[Curve]:
    """Flat, then a line; flat, a line, flat. A part has two scales at least; change-points lie at the scales and half-way
    between."""
    places = np.sort(np.concatenate([x, (x[1:] + x[:-1]) / 2]))
    starts = [start for start in places if (x <= start).sum() >= 2 and (x > start).sum() >= 2]
    one = np.ones_like(x)
    found = [Curve(np.stack([one, np.maximum(0, x - start)], 1), 3, start) for start in starts]
    for start, end in itertools.combinations(starts, 2):
        if (x >= end).sum() >= 2:
            found.append(Curve(np.stack([one, np.clip(x, start, end) - start], 1), 4, start))
    return found


def _best(curves: Sequence[Curve], y_SB: np.ndarray, floor_B: np.ndarray) -> tuple[np.ndarray, Curve]:
    """((B,) the least Bayesian information criterion of each column, the curve that has it in the first one). Residuals are
    Gaussian, and their variance is a parameter."""
    n = len(y_SB)
    found = []
    for curve in curves:
        squares_B = ((y_SB - _project(curve.design, y_SB)) ** 2).sum(0)
        found.append(n * np.log(np.maximum(squares_B / n, floor_B)) + (curve.parameters + 1) * math.log(n))
    return np.min(found, 0), curves[int(np.argmin([each[0] for each in found]))]


def sharpness(table: Table, metric: str, *, bootstraps: int = 1000, seed: int = 0) -> dict[str, Any]:
    """One metric: `verdict` sharp, smooth, unclear or flat; `advantage` of the change-point with its 90% interval, and the
    `share` of resamples where it is above 0; `gain` from the smallest third of the scales to the largest; `change_point` in the
    unit of the scale where it is sharp; `resampled` what was drawn again.
    """
    grid_SU = table.grid(metric)
    x = np.log(table.scales)
    x = (x - x.mean()) / x.std()
    generator = np.random.default_rng(seed)
    mean_S = np.nanmean(grid_SU, axis=1)
    spread, units = float(np.ptp(mean_S)), grid_SU.shape[1]
    if units >= UNITS:
        drawn_SB, error = _by_units(grid_SU, bootstraps, generator)
    else:
        drawn_SB, error = _by_residuals(x, mean_S, spread, bootstraps, generator), 0.0
    mean_SB = np.concatenate([mean_S[:, None], drawn_SB], 1)
    floor_B = np.full(mean_SB.shape[1], _floor(spread, error))
    (smooth_B, _), (changed_B, changed) = _best(_smooth(x), mean_SB, floor_B), _best(_changing(x), mean_SB, floor_B)
    advantage_B = smooth_B - changed_B
    third = max(2, len(x) // 3)
    gain_B = mean_SB[-third:].mean(0) - mean_SB[:third].mean(0)
    moves = spread > 0 and float((np.sign(gain_B[1:]) == np.sign(gain_B[0])).mean()) >= MOVES
    share = float((advantage_B[1:] > 0).mean())
    low, high = np.percentile(advantage_B[1:], (5, 95))
    found = {
        "verdict": _verdict(float(advantage_B[0]), share, moves),
        "advantage": float(advantage_B[0]),
        "low": float(low),
        "high": float(high),
        "share": share,
        "gain": float(gain_B[0]),
        "scales": len(x),
        "units": units,
        "resampled": "units" if units >= UNITS else "residuals",
        "means": [_mean(scale, row) for scale, row in zip(table.scales.tolist(), grid_SU)],
    }
    logs = np.log(table.scales)
    point = math.exp(changed.start * float(logs.std()) + float(logs.mean()))
    return found | ({"change_point": point} if found["verdict"] == "sharp" else {})


def _mean(scale: float, values_U: np.ndarray) -> dict[str, Any]:
    """The mean at a scale with its 95% interval over units, null where there is but one."""
    found = mean(values_U[np.isfinite(values_U)]).to_json()
    return {"scale": scale, "mean": found.pop("value"), **found}


def _floor(spread: float, error: float) -> float:
    """The least variance that residuals are taken to have: that of the means themselves, else a curve that goes through all of
    them has no bound; a thousandth of the metric's range where that is not known."""
    return max(error, 1e-6 * spread**2, 1e-300)


def _by_units(grid_SU: np.ndarray, count: int, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """((S, B) means over units drawn again, the means' own variance). Draws that leave a scale empty are left out."""
    there_SU, units = np.isfinite(grid_SU), grid_SU.shape[1]
    counts_UB = generator.multinomial(units, np.full(units, 1 / units), size=count).T.astype(float)
    weight_SB = there_SU.astype(float) @ counts_UB
    keep = (weight_SB > 0).all(0)
    mean_SB = (np.where(there_SU, grid_SU, 0.0) @ counts_UB[:, keep]) / weight_SB[:, keep]
    return mean_SB, float(mean_SB.var(1).mean())


def _by_residuals(
    x: np.ndarray, mean_S: np.ndarray, spread: float, count: int, generator: np.random.Generator
) -> np.ndarray:
    """(S, B) the better of the two best curves with its residuals drawn again: for tables of few units."""
    y_S1, floor_1 = mean_S[:, None], np.array([_floor(spread, 0.0)])
    pairs = [_best(curves, y_S1, floor_1) for curves in (_smooth(x), _changing(x))]
    chosen = min(pairs, key=lambda pair: pair[0][0])[1]
    curve_S = _project(chosen.design, y_S1)[:, 0]
    wide_S = (mean_S - curve_S) * math.sqrt(len(x) / max(1, len(x) - chosen.parameters))
    return curve_S[:, None] + generator.choice(wide_S, size=(len(x), count))


def _verdict(advantage: float, share: float, moves: bool) -> str:
    """By the rule at the head of this file."""
    if not moves:
        return "flat"
    if advantage >= STRONG and share >= SURE:
        return "sharp"
    return "smooth" if advantage <= -STRONG and share <= 1 - SURE else "unclear"


def emergence(table: Table, hard: str, soft: Sequence[str], **chosen: Any) -> dict[str, Any]:
    """Of each metric its `sharpness`, and with each soft metric the verdict on the pair."""
    found = {name: sharpness(table, name, **chosen) for name in (hard, *soft)}
    pairs = {name: VERDICTS.get((found[hard]["verdict"], found[name]["verdict"]), "undecided") for name in soft}
    return {"metrics": found, "verdicts": pairs}


def gains(table: Table, after: str, before: str) -> list[dict[str, Any]]:
    """By scale the mean of `after` - `before`, paired by unit, with its 95% interval: few-shot minus zero-shot, instructed minus
    pretrained, chain of thought minus the answer alone. Scales at which no unit has both are left out."""
    grids = table.grid(after), table.grid(before)
    rows = []
    for place, scale in enumerate(table.scales.tolist()):
        both = np.isfinite(grids[0][place]) & np.isfinite(grids[1][place])
        if both.any():
            rows.append({"scale": scale, **difference(grids[0][place][both], grids[1][place][both]).to_json()})
    return rows
