"""Residuals of a fitted law, and predicted against measured, drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from lmlab.errors import Refused
from lmlab.report.page import can_draw
from lmlab.report.plots import Line, scatter
from lmlab.scaling.approaches import APPROACHES
from lmlab.scaling.forms import FORMS
from lmlab.scaling.table import UNITS


def residual_plot(law: Mapping[str, Any]) -> str:
    """A standalone SVG: how many per cent each run lies above the law, over compute where the law's quantities give it (else
    over the law's first quantity), a series a group. What is left over must not bend or fan out with scale."""
    names = list(FORMS[law["law"]].features)
    series = []
    for name, group in law["groups"].items():
        rows = [dict(zip(names, row)) for row in group["x"]]
        places = [_place(row) for row in rows]
        series.append(Line(name, places, [100 * math.expm1(residual) for residual in group["residuals"]]))
    title = f"Residuals of {law['law']}: per cent measured above the law"
    return _standalone(scatter("residuals", title, series, x=_axis(names)))


def prediction_plot(found: Mapping[str, Any]) -> str:
    """A standalone SVG: how many per cent each run was measured above its prediction, the whisker crosses 0 where the 90%
    interval holds it."""
    names = [name for name in UNITS if name in found["rows"][0]]
    series = []
    for name, rows in itertools.groupby(found["rows"], key=lambda row: row["group"]):
        mine = list(rows)
        value, low, high = (
            [100 * (row["measured"] / row[key] - 1) for row in mine] for key in ("predicted", "high", "low")
        )
        series.append(Line(name, [_place(row) for row in mine], value, low, high))
    title = f"{found['law']}: per cent measured above the prediction, 90%"
    return _standalone(scatter("predictions", title, series, x=_axis(names)))


def check(law: str = "") -> None:
    """Refused, before any work, where there is no matplotlib, or the law has no residuals."""
    if not can_draw():
        raise Refused("--plot needs matplotlib: pip install 'lmlab[report]'")
    if law in APPROACHES:
        raise Refused(f"--plot: {law} has no form for the loss, and so no residuals to draw; leave it out")


def _axis(names: list[str]) -> str:
    return "FLOPs (6 N D)" if {"params", "tokens"} <= set(names) else "loss" if names[0] == "loss" else UNITS[names[0]]


def _place(row: Mapping[str, Any]) -> float:
    if {"params", "tokens"} <= row.keys():
        return 6.0 * row["params"] * row["tokens"]
    return next(row[name] for name in UNITS if name in row)


def _standalone(drawn: str) -> str:
    style = "svg{--ink:#222;--muted:#666;--rule:#ddd;--paper:#fff;"
    style += "--s1:#1f6f8b;--s2:#c8553d;--s3:#6a994e;--s4:#8d6a9f;--s5:#b08900;--s6:#444}"
    head, tail = drawn.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{tail}\n'
