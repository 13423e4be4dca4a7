"""Drawing with matplotlib into inline SVG: curves, and dots with whiskers.

The SVG carries no colour of its own but CSS variables (`var(--ink)`, `var(--s1)`...), so that one drawing reads on
light, dark and paper. The same numbers give the same bytes: ids are salted with the plot's name, and no date is
written. Text stays text (searchable, small) and takes the page's font.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.measure import Score

# Stand-in colours that matplotlib writes and `_themed` turns into the page's variables; chosen so that no two mix.
INK, MUTED, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#0000{16 + i:02x}" for i in range(6))
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", PAPER: "--paper"} | {
    colour: f"--s{i + 1}" for i, colour in enumerate(SERIES)
}
MARKERS = ("o", "s", "D", "^", "v", "P")
"""One shape a series, so that colour is never the only difference."""
MANY = 4
"""A legend of more names than this stands below the plot."""
LONGEST = 34
"""Characters of a label: a third of a plot's width at its size of type."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lmlab",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # names of stages and families are no formulas
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "axes.prop_cycle": "cycler('color', ['#000010'])",
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.6,
    "path.simplify": False,  # what is drawn is what was given: thinning happens before
}


@dataclass(frozen=True)
class Line:
    """A curve: `step` and `value` of one length; `low` and `high`, if given, bound what a point averages."""

    label: str
    step: Sequence[float]
    value: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def curve(
    name: str,
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    references: Mapping[str, float] | None = None,
    note: str = "",
    ticks: Sequence[float] = (),
) -> str:
    """Curves over steps, with dashed reference lines. Returns the SVG element; "" where there is nothing to draw.

    With `ticks` the horizontal axis is logarithmic, marked at these places, and so is each point of a curve.
    """
    drawn = [line for line in lines if line.step]
    if not drawn:
        return ""
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(5.0, 2.75))
        axes = figure.add_subplot()
        for index, line in enumerate(lines):  # a curve that is absent keeps its colour for its other plots
            if not line.step:
                continue
            colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            if line.low and line.high:
                axes.fill_between(line.step, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
            marked = marker if ticks or len(line.step) == 1 else ""
            style = "-" if index < len(SERIES) else "--"
            axes.plot(
                line.step,
                line.value,
                color=colour,
                label=_label(line.label),
                marker=marked,
                markersize=4.6,
                linestyle=style,
            )
        _zoom(axes, drawn, list((references or {}).values()))
        for (label, height), style in zip((references or {}).items(), _dashes(len(references or {}))):
            axes.axhline(height, color=MUTED, linewidth=1.1, linestyle=style, label=_label(label))
        axes.set_xlabel(note or "step")
        axes.set_title(title + (f" ({unit})" if unit else ""), loc="left", fontsize=10.5)
        _few_ticks(axes)
        if ticks:
            _logarithmic(axes, ticks)
        names = len(drawn) + len(references or {})
        if names > MANY:
            figure.legend(loc="outside lower left", ncols=4, columnspacing=1.2, handletextpad=0.4)
        elif names > 1:
            axes.legend(loc="best")
        return _svg(figure, name, title)


def dots(
    name: str,
    title: str,
    rows: Sequence[tuple[str, Mapping[str, Score]]],
    *,
    unit: str = "",
    percent: bool = False,
    references: Mapping[str, float] | None = None,
) -> str:
    """Dot and whisker: one row a label, one dot a series, the whisker its 95% interval. Returns the SVG element."""
    rows = [(label, series) for label, series in rows if series]
    if not rows:
        return ""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scale = 100.0 if percent else 1.0
    names = list(dict.fromkeys(key for _, series in rows for key in series))[: len(SERIES)]
    step = 0.62 / max(len(names), 1)
    with _styled():
        figure = Figure(figsize=(5.0, 0.95 + len(rows) * max(0.3, 0.115 * len(names) + 0.09)))
        axes = figure.add_subplot()
        for index, key in enumerate(names):
            found = [(row, series[key]) for row, (_, series) in enumerate(rows) if key in series]
            y = [row + (index - (len(names) - 1) / 2) * step for row, _ in found]
            x = [scale * it.value for _, it in found]
            ends = [[scale * (it.value - _end(it.low, it)), scale * (_end(it.high, it) - it.value)] for _, it in found]
            errors = [[max(0.0, low) for low, _ in ends], [max(0.0, high) for _, high in ends]]
            axes.errorbar(
                x, y, xerr=errors, fmt=MARKERS[index], color=SERIES[index], label=_label(key), markersize=4.6,
                markeredgecolor=PAPER, markeredgewidth=0.7, elinewidth=1.5, linestyle="none",
            )  # fmt: skip
        for (label, place), style in zip((references or {}).items(), _dashes(len(references or {}))):
            axes.axvline(scale * place, color=MUTED, linewidth=1.1, linestyle=style, label=_label(label))
        axes.set_yticks(range(len(rows)), [_label(label) for label, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(unit or ("per cent" if percent else ""))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        if percent:
            low, high = axes.get_xlim()
            axes.set_xlim(max(low, -2), min(high, 102))
        if len(names) + len(references or {}) > 1:
            columns = min(4, len(names) + len(references or {}))
            figure.legend(loc="outside lower left", ncols=columns, columnspacing=1.2, handletextpad=0.4)
        return _svg(figure, name, title)


@dataclass(frozen=True)
class Bars:
    """Heights, one a place of the axis."""

    label: str
    height: Sequence[float]


def bars(name: str, title: str, places: Sequence[str], series: Sequence[Bars], *, unit: str = "") -> str:
    """Counts at named places, the series beside each other. Returns the SVG element; "" where there is nothing."""
    shown = [each for each in series if any(each.height)][: len(SERIES)]
    if not shown:
        return ""
    from matplotlib.figure import Figure

    width = 0.8 / len(shown)
    with _styled():
        figure = Figure(figsize=(5.0, 2.75))
        axes = figure.add_subplot()
        for index, (each, colour) in enumerate(zip(shown, SERIES)):
            x = [place + (index - (len(shown) - 1) / 2) * width for place in range(len(places))]
            axes.bar(x, each.height, width=0.92 * width, color=colour, label=_label(each.label))
        axes.set_xticks(range(len(places)), [_label(place) for place in places], fontsize=8)
        if len(places) > 9:
            axes.tick_params(axis="x", labelrotation=45)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(unit)
        axes.set_title(title, loc="left", fontsize=10.5)
        if len(shown) > 1:
            axes.legend(loc="best")
        return _svg(figure, name, title)


def scatter(name: str, title: str, series: Sequence[Line], *, x: str = "") -> str:
    """A mark a run, `step` its place on the horizontal axis, with a whisker from `low` to `high` where they are given, and a
    line at 0; the horizontal axis is logarithmic where it spans a factor of 10. Returns the SVG element; "" where there is
    nothing to draw."""
    shown = [each for each in series if each.step]
    if not shown:
        return ""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with _styled():
        figure = Figure(figsize=(5.0, 2.75))
        axes = figure.add_subplot()
        for index, each in enumerate(shown):
            colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            ends = [[v - low, high - v] for v, low, high in zip(each.value, each.low, each.high)]
            axes.errorbar(
                each.step, each.value, yerr=list(zip(*ends)) or None, fmt=marker, color=colour, label=_label(each.label),
                markersize=4.6, markeredgecolor=PAPER, markeredgewidth=0.7, elinewidth=1.0, linestyle="none",
            )  # fmt: skip
        axes.axhline(0.0, color=MUTED, linewidth=1.1)
        places = [place for each in shown for place in each.step]
        axes.set_xscale("log" if max(places) >= 10 * min(places) > 0 else "linear")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x)
        axes.set_title(title, loc="left", fontsize=10.5)
        if len(shown) > MANY:
            figure.legend(loc="outside lower left", ncols=4, columnspacing=1.2, handletextpad=0.4)
        elif len(shown) > 1:
            axes.legend(loc="best")
        return _svg(figure, name, title)


def _end(end: float, it: Score) -> float:
    """An unbounded whisker is not drawn."""
    return end if math.isfinite(end) else it.value


def _dashes(count: int) -> list[Any]:
    styles = [(0, (5, 3)), (0, (1.5, 2)), (0, (7, 2, 1.5, 2)), (0, (3, 2))]
    return [styles[i % len(styles)] for i in range(count)]


def _zoom(axes: Any, lines: Sequence[Line], references: Sequence[float]) -> None:
    """Cut off the first steps' heights where they would squash the rest: the curve then enters from the edge."""
    values = sorted(v for line in lines for v in line.value)
    if len(values) < 20:
        return
    low, high = values[0], values[round(0.97 * (len(values) - 1))]
    low, high = min([low, *references]), max([high, *references])
    reach = high - low
    if reach > 0 and values[-1] - low > 1.8 * reach:
        axes.set_ylim(low - 0.06 * reach, high + 0.25 * reach)


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def _logarithmic(axes: Any, ticks: Sequence[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def _styled() -> Any:
    """matplotlib's defaults with our style over them, whatever a user's matplotlibrc says."""
    from matplotlib import rc_context, rcParamsDefault

    defaults = {key: value for key, value in rcParamsDefault.items() if key not in ("backend", "backend_fallback")}
    return rc_context({**defaults, **STYLE})


def _svg(figure: Any, name: str, title: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that our measuring font lacks: the page's font draws it
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(buffer.getvalue(), name, title)


def _themed(svg: str, name: str, title: str) -> str:
    """Only the `svg` element, sized by the page, coloured by its variables, with ids that no other plot has."""
    from markupsafe import escape

    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', body)
    body = re.sub(r"^<svg[^>]*>", "", body, count=1)
    body = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL
    )
    body = body.replace("xlink:href", "href")
    used = set(re.findall(r"""(?:href="#|url\(#)([^")]+)""", body))
    prefix = re.sub(r"[^A-Za-z0-9-]", "-", name)
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    body = re.sub(r"<[^>]+>", lambda m: _smaller(m[0]), body)
    body = re.sub(r">\s+<", "><", body)
    label = escape("".join(c if c.isprintable() else " " for c in title))
    opening = f'<svg class="plot" viewBox="{box[1] if box else "0 0 360 198"}" role="img" aria-label="{label}">'
    return f"{opening}<title>{label}</title>{body}".strip()


def _smaller(tag: str) -> str:
    """A tag without the fonts of this machine and with coordinates to a hundredth of a point."""
    tag = re.sub(r"font-family: [^;\"]*;?\s?|(?<=font-size: )(?=\.)", "", tag)
    tag = re.sub(r"(\d+\.\d\d)\d+", r"\1", tag)
    return re.sub(r"\s*\n\s*", " ", tag)


def _label(text: str) -> str:
    """One short line; matplotlib would leave a label that starts with an underscore out of the legend."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split()) or "?"
    line = line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
    return f" {line}" if line.startswith("_") else line
