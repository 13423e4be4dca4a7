"""The page of `lmlab scale emergence`: of each task the metrics over scale, the verdicts, and what prompts gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmlab import __version__
from lmlab.report.page import drawn, render
from lmlab.report.plots import Line, curve
from lmlab.report.views import Cell, Table

Found = Mapping[str, Any]


def emergence_page(found: Sequence[Found], name: str, by: Sequence[str], scale: str) -> str:
    """The page of what `lmlab.scaling.command.emergence_of` found, grouped by the columns `by`. Without matplotlib it is a
    page without plots."""
    titles = [", ".join(str(each[column]) for column in by) or "all rows" for each in found]
    tasks = [
        {
            "title": title,
            "verdicts": _verdicts(each, scale),
            "values": _values(each, scale),
            "figures": drawn(_figures, each, f"task-{place}", scale),
        }
        for place, (title, each) in enumerate(zip(titles, found))
    ]
    return render(
        "emergence.html.jinja", report={"run": name, "lmlab": __version__}, tasks=tasks, summary=_summary(titles, found)
    )


def _summary(titles: Sequence[str], found: Sequence[Found]) -> Table:
    soft = list(dict.fromkeys(name for each in found for name in each["verdicts"]))
    rows = [(title, [Cell(each["verdicts"].get(name, "–")) for name in soft]) for title, each in zip(titles, found)]
    return Table("Verdicts, by soft metric", soft, rows)


def _verdicts(each: Found, scale: str) -> Table:
    rows = []
    for name, metric in each["metrics"].items():
        advantage = Cell(f"{metric['advantage']:+.1f}", f"{metric['low']:+.1f} to {metric['high']:+.1f}")
        point = f"{metric['change_point']:.3g}" if "change_point" in metric else "–"
        cells = [Cell(metric["verdict"]), advantage, Cell(f"{metric['share']:.0%}"), Cell(point)]
        rows.append((name, cells))
    note = f"Resampled: {next(iter(each['metrics'].values()))['resampled']}; intervals 90%."
    return Table(
        "Change-point against smooth curve",
        ["verdict", "advantage", "above 0 in", f"{scale} of the change"],
        rows,
        note,
    )


def _values(each: Found, scale: str) -> Table:
    columns = [*each["metrics"], *(f"{name} gain" for name in each["gains"])]
    series = [metric["means"] for metric in each["metrics"].values()] + list(each["gains"].values())
    rows = []
    for first in series[0]:
        at = [next((row for row in one if row["scale"] == first["scale"]), None) for one in series]
        rows.append((f"{scale} {first['scale']:.3g}", [_cell(row) for row in at]))
    return Table("Means with their 95% intervals over units", columns, rows)


def _cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None:
        return Cell()
    ends = "" if row["low"] is None else f"{row['low']:.3g} to {row['high']:.3g}"
    return Cell(f"{_height(row):.3g}", ends, str(row["n"]))


def _height(row: Mapping[str, Any]) -> float:
    return row["mean"] if "mean" in row else row["value"]


def _figures(each: Found, name: str, scale: str) -> list[str]:
    """One plot a metric, and one of all gains; scales in a unit of which the least is at least one."""
    least = min(row["scale"] for metric in each["metrics"].values() for row in metric["means"])
    power = 3 * max(0, math.floor(math.log10(least) / 3))
    note = scale if not power else f"{scale} / 1e{power}"
    ticks = sorted({row["scale"] / 10**power for metric in each["metrics"].values() for row in metric["means"]})
    made = [
        curve(
            f"{name}-{place}",
            f"{metric}: {one['verdict']}",
            [_line(metric, one["means"], power)],
            note=note,
            ticks=ticks,
        )
        for place, (metric, one) in enumerate(each["metrics"].items())
    ]
    gains = [_line(gain, rows, power) for gain, rows in each["gains"].items()]
    return [*made, curve(f"{name}-gains", "gains in the hard metric", gains, note=note, ticks=ticks)]


def _line(label: str, rows: Sequence[Mapping[str, Any]], power: int) -> Line:
    bounded = all(row["low"] is not None and row["high"] is not None for row in rows)
    low, high = ([row[end] for row in rows] if bounded else [] for end in ("low", "high"))
    return Line(label, [row["scale"] / 10**power for row in rows], [_height(row) for row in rows], low, high)
