"""A grid in a few lines for the terminal: each arm's mean and spread, and how it differs from the first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.report.grid import collect_grid
from lmlab.report.scores import at, is_percent, score, tell_change, value_of
from lmlab.report.words import label_of


def summarise(run_dir: Path) -> dict[str, Any]:
    """{main, first, summary: {ARM: {value, low, high, n, spread, values, difference}}} of a grid's main score."""
    report = collect_grid(run_dir)
    main = report["main"]
    rows = {}
    for arm, found in report["arms"].items() if main else ():
        rows[arm] = {**found["scores"].get(main, {}), "difference": found["difference"].get(main)}
    return {"main": main, "first": report["first"], "summary": rows}


def describe(found: Mapping[str, Any]) -> str:
    """The lines; "" where nothing was measured yet."""
    if not found["main"]:
        return ""
    stage, *path = found["main"].split(".")
    percent, width = is_percent(path), max(map(len, found["summary"]))
    label = label_of(".".join(path).removesuffix(".after"))
    lines = [
        f"  {stage}: {label}, mean over seeds ± standard deviation; difference from {found['first']} [95% interval]"
    ]
    for arm, row in found["summary"].items():
        it, difference = score(row), score(row["difference"])
        if it is None:
            lines.append(f"  {arm:<{width}}  not measured")
            continue
        spread = (100 if percent else 1) * (at(row, "spread") or 0.0)
        about = "" if it.n < 2 else f" ± {spread:.1f}%" if percent else f" ± {spread:.3f}"
        told = tell_change(difference, percent) if difference is not None else f"(n = {it.n})"
        told = told.replace("[-inf to +inf]", "[one seed, no interval]")
        lines.append(f"  {arm:<{width}}  {value_of(it, percent)}{about}  {told}")
    return "\n".join(lines)
