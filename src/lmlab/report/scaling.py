"""Residuals of a fitted law, drawn."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from lmlab.errors import Refused
from lmlab.report.page import can_draw
from lmlab.report.plots import Bars, bars


def residual_plot(law: Mapping[str, Any]) -> str:
    """A standalone SVG: how many runs lie so many per cent above or below the law, one series a group."""
    if not can_draw():
        raise Refused("--plot needs matplotlib: pip install 'lmlab[report]'")
    edges = [-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0]
    places = [f"< {edges[0]:g}", *(f"{a:g}..{b:g}" for a, b in itertools.pairwise(edges)), f"> {edges[-1]:g}"]
    series = []
    for name, group in law["groups"].items():
        counts = [0.0] * len(places)
        for residual in group.get("residuals", ()):
            counts[sum(100 * residual >= edge for edge in edges)] += 1
        series.append(Bars(name, counts))
    drawn = bars(
        "residuals", f"Residuals of {law['law']}", places, series, unit="per cent of loss, measured above the law"
    )
    if not drawn:
        raise Refused(f"--plot: the law '{law['law']}' has no residuals to draw")
    style = "svg{--ink:#222;--muted:#666;--rule:#ddd;--paper:#fff;"
    style += "--s1:#1f6f8b;--s2:#c8553d;--s3:#6a994e;--s4:#8d6a9f;--s5:#b08900;--s6:#444}"
    head, tail = drawn.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{tail}\n'
