"""Chinchilla's approaches 1 and 2: the best size at a budget read off the runs, without a form for the loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmlab.errors import Refused
from lmlab.scaling.table import Runs

BUDGETS = 1500
"""Approach 1's number of budgets, evenly spaced in log C."""


def envelope(params: np.ndarray, compute: np.ndarray, loss: np.ndarray, budgets: int = BUDGETS) -> np.ndarray:
    """Rows (C, N, L) of the lower envelope of the curves of loss over compute, one curve a size.

    A curve is read between its points linearly in log C and not beyond them. A budget counts where two curves or more
    reach it, else there is nothing to choose from.
    """
    sizes = np.unique(params)
    at = np.linspace(np.log(compute.min()), np.log(compute.max()), budgets)
    curves = np.full((len(sizes), budgets), np.inf)
    for place, size in enumerate(sizes):
        mine = params == size
        order = np.argsort(compute[mine])
        x, y = np.log(compute[mine][order]), loss[mine][order]
        inside = (at >= x[0]) & (at <= x[-1])
        curves[place, inside] = np.interp(at[inside], x, y)
    shared = np.isfinite(curves).sum(0) >= 2
    winner = curves[:, shared].argmin(0)
    return np.stack([np.exp(at[shared]), sizes[winner], curves[:, shared].min(0)], 1)


def isoflop(params: np.ndarray, compute: np.ndarray, loss: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
    """Rows (C, N, L): the bottom of a parabola in log N through the runs of each budget.

    Budgets within `tolerance` (in log C) of their neighbour are one. A budget counts with three sizes, a parabola that
    opens upwards and its bottom between the smallest and the largest size.
    """
    order = np.argsort(compute)
    cuts = np.flatnonzero(np.diff(np.log(compute[order])) > tolerance) + 1
    found = []
    for mine in np.split(order, cuts):
        logs = np.log(params[mine])
        if len(np.unique(logs)) < 3:
            continue
        middle = logs.mean()
        square, slope, height = np.polyfit(logs - middle, loss[mine], 2)
        bottom = middle - slope / (2 * square) if square > 0 else np.inf
        if logs.min() <= bottom <= logs.max():
            budget = np.exp(np.log(compute[mine]).mean())
            found.append((budget, np.exp(bottom), height - slope**2 / (4 * square)))
    return np.array(found).reshape(-1, 3)


APPROACHES = {"envelope": envelope, "isoflop": isoflop}


def allocate(runs: Runs, approach: str, *, bootstraps: int = 1000, seed: int = 0) -> dict[str, Any]:
    """N_opt = k C^a and D_opt = C / (6 N_opt) of each group; the interval of `a` by resampling the budgets' optima. `theta` is
    (log k, a), `bootstrap` the resampled ones.

    Refused where fewer than two budgets have an optimum.
    """
    groups = {}
    for name in sorted(set(runs.group)):
        mine = runs.of(name).values
        optima = APPROACHES[approach](mine["params"], mine["compute"], mine["loss"])
        if len(np.unique(optima[:, 0])) < 2 or len(np.unique(optima[:, 1])) < 2:
            wanted = {"envelope": "curves of 2 sizes that cross", "isoflop": "3 sizes at each of 2 budgets"}[approach]
            raise Refused(f"{approach}: group '{name}' has no two budgets with a best size; it needs {wanted}")
        # the envelope's budgets are points of few curves: one point a size, the middle of its stretch
        points = optima if approach == "isoflop" else _middles(optima)
        x, y = np.log(points[:, 0]), np.log(points[:, 1])
        a, k = np.polyfit(x, y, 1)
        generator = np.random.default_rng(seed)
        draws = [generator.integers(0, len(x), len(x)) for _ in range(bootstraps)]
        lines = [np.polyfit(x[draw], y[draw], 1) for draw in draws if len(np.unique(x[draw])) > 1]
        low, high = np.percentile([slope for slope, _ in lines], (5, 95))
        few = len(points) < 4
        groups[name] = {
            "runs": len(mine["loss"]),
            "constants": {
                "a": {"value": float(a), "low": float(low), "high": float(high)},
                "b": {"value": float(1 - a), "low": float(1 - high), "high": float(1 - low)},
            },
            "theta": [float(k), float(a)],
            "bootstrap": [[float(f"{each:.8g}") for each in (height, slope)] for slope, height in lines],
            "optima": [dict(zip(("compute", "params", "loss"), row)) for row in points.tolist()],
            "warnings": [f"{len(points)} budgets with an optimum: a and b hang on each of them"] if few else [],
        }
    return {"law": approach, "set_aside": runs.set_aside, "groups": groups}


def _middles(optima: np.ndarray) -> np.ndarray:
    """Of each size the middle (in log C) of the stretch where it is the best, but for the first and the last size, whose
    stretch the runs cut off, where more than three are left."""
    sizes = np.unique(optima[:, 1])
    rows = [np.exp(np.log(optima[optima[:, 1] == size]).mean(0)) for size in sizes]
    return np.array(rows[1:-1] if len(rows) > 4 else rows)
