"""report.html: one self-contained page, set by a Jinja template from a report's numbers. No script, nothing fetched."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmlab.measure import Score
from lmlab.report import views
from lmlab.report.figures import figures, grid_figures, more
from lmlab.report.grid import all_paths, headline_paths, varies
from lmlab.report.scores import above, at, duration, interval, is_percent, plain, score, value_of
from lmlab.report.views import Cell, Table
from lmlab.report.words import TEACH, label_of, story

VERDICTS = {True: ("held", "holds"), False: ("failed", "does not hold"), None: ("open", "undecided")}
OPEN_ROWS = 30
"""A table of tasks longer than this is folded away."""
SIDE_BY_SIDE = 5
"""Arms that fit as columns."""


def page(report: Mapping[str, Any]) -> str:
    """The page of one run's report (`lmlab.report.collect.collect`). Without matplotlib it is a page without plots."""
    stages = [_section(name, report) for name in report["stages"]]
    _name_anchors(stages)
    anchors = {stage["name"]: stage["anchor"] for stage in stages}
    return render(
        "run.html.jinja",
        report=report,
        story=story(report),
        headlines=views.headline_table(report),
        claims=[{**_claim(each), "anchor": anchors[each["stage"]]} for each in report["claims"]],
        stages=stages,
        machine=_machine(report["machine"]),
        took=duration(report["seconds"]),
    )


def grid_page(report: Mapping[str, Any]) -> str:
    """The page of a grid's report (`lmlab.report.grid.collect_grid`)."""
    arms, first, main = report["arms"], report["first"], report["main"]
    paths = [*([main] if main else []), *(p for p in headline_paths(arms) if p != main and varies(arms, p))]
    rest = paths[1:]
    others = {name: arm for name, arm in arms.items() if name != first}
    return render(
        "grid.html.jinja",
        report=report,
        first=first,
        main=_main_table(arms, main, first) if main else None,
        arms=_arm_table("Other headline numbers, mean over seeds", arms, "scores", rest),
        differences=_arm_table(f"Their difference from {first}", others, "difference", rest) if others else None,
        everything=_every_score(arms, [p for p in all_paths(arms) if p not in paths]),
        figures=drawn(grid_figures, arms, paths, first),
        claims=_grid_claims(arms),
        seeds={name: arm["seeds"] for name, arm in arms.items()},
        machine=_machine(report["machine"]),
        took=duration(report["seconds"]),
    )


def render(template: str, **view: Any) -> str:
    """A template of this folder, set. Text from files is escaped and its control characters are made visible."""
    return _environment().get_template(template).render(**view, drawn=can_draw())


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    environment.filters["shorten"] = views.shorten
    return environment


def _visible(value: Any) -> Any:
    """Text from files, its control characters made visible; markup of our own is left as it is."""
    return views.visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def can_draw() -> bool:
    """Whether matplotlib (the extra [report]) is here."""
    return importlib.util.find_spec("matplotlib") is not None


def drawn(draw: Callable[..., list[str]], *given: Any) -> list[Any]:
    """SVG of our own making goes into the page as it is; every text inside was escaped when it was drawn."""
    from markupsafe import Markup

    return [Markup(each) for each in draw(*given) if each] if can_draw() else []


def _section(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    stage = report["stages"][name]
    shown, count = views.samples(stage)
    matter, every = views.settings(stage)
    pooled, tasks = views.evaluation(stage) if stage["kind"] == "evaluate" else (None, None)
    return {
        "name": name,
        "anchor": "stage-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "x"),
        "kind": stage["kind"],
        "status": stage["status"],
        "error": str(at(stage, "headline", "error") or ""),
        "seconds": duration(stage["seconds"]) if stage["seconds"] is not None else "",
        "teach": TEACH.get(stage["kind"], ""),
        "matter": matter,
        "settings": every,
        "scores": views.score_tables(stage),
        "counts": views.count_tables(stage),
        "figures": drawn(figures, name, report),
        "more": drawn(more, name, stage),
        "samples": shown,
        "sample_count": count,
        "pooled": pooled,
        "tasks": tasks,
        "tasks_open": tasks is not None and len(tasks.rows) <= OPEN_ROWS,
        "shares": views.shares(stage) if stage["kind"] == "evaluate" else [],
        "descriptions": views.descriptions(stage),
        "claims": [_claim(each) for each in report["claims"] if each["stage"] == name],
        "seed": stage["seed"],
        "fingerprint": str(stage["fingerprint"] or ""),
        "finished": str(stage["finished"] or ""),
    }


def _name_anchors(stages: Iterable[dict[str, Any]]) -> None:
    """Two names that differ in punctuation only must not share an anchor."""
    taken: set[str] = set()
    for stage in stages:
        base, count = stage["anchor"], 2
        while stage["anchor"] in taken:
            stage["anchor"], count = f"{base}-{count}", count + 1
        taken.add(stage["anchor"])


def _claim(given: Mapping[str, Any]) -> dict[str, Any]:
    mark, word = VERDICTS[given["holds"]]
    if given["holds"] is None and ("not measured" in given["evidence"] or given["evidence"].startswith("no ")):
        word = "not measured"
    return {**given, "mark": mark, "word": word}


def _machine(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for key, value in machine.items():
        if isinstance(value, Mapping):
            rows += [(str(name), str(version)) for name, version in value.items()]
        elif value is not None:
            rows.append((key.replace("_", " "), str(value)))
    return rows


def _main_table(arms: Mapping[str, Mapping[str, Any]], main: str, first: str | None) -> Table:
    """What the arms are compared by: arms as rows, with each seed's value and what the difference from the first says."""
    percent = is_percent(main.split("."))
    rows = []
    for name, arm in arms.items():
        each = ", ".join(plain(value, percent) for value in at(arm, "scores", main, "values") or ())
        difference = score(arm["difference"].get(main))
        cells = [_arm_cell(arm["scores"].get(main), main), views.change(difference, percent), _said(difference)]
        rows.append((name, [*cells, Cell(each)] if name != first else [cells[0], Cell(), Cell(), Cell(each)]))
    return Table(_column(main), ["mean over seeds", f"difference from {first}", "", "each seed"], rows)


def _said(difference: Score | None) -> Cell:
    """What an interval says: on which side of 0 it lies."""
    higher = None if difference is None or difference.n < 2 else above(difference, 0.0)
    return Cell("undecided" if higher is None else "higher" if higher else "lower") if difference else Cell()


def _arm_table(title: str, arms: Mapping[str, Mapping[str, Any]], part: str, paths: list[str]) -> Table | None:
    """Measures by arms; arms by measures where there are more arms than fit beside each other."""
    cells = {(name, path): _arm_cell(arm[part].get(path), path, part) for name, arm in arms.items() for path in paths}
    used = [path for path in paths if any(cells[name, path].value != "–" for name in arms)]
    if not used:
        return None
    if len(arms) <= SIDE_BY_SIDE:
        return Table(title, list(arms), [(_column(path), [cells[name, path] for name in arms]) for path in used])
    return Table(
        title, [_column(path) for path in used], [(name, [cells[name, path] for path in used]) for name in arms]
    )


def _arm_cell(given: Any, path: str, part: str = "scores") -> Cell:
    it, percent = score(given), is_percent(path.split("."))
    if it is None:
        return Cell()
    if part == "difference":
        return views.change(it, percent)
    deviation = at(given, "spread")
    about = f"± {100 * deviation:.2g}%" if percent and deviation else f"± {deviation:.2g}" if deviation else "± 0"
    return Cell(value_of(it, percent), f"{about}, {interval(it, percent)}" if it.n > 1 else "one seed", f"{it.n:,}")


def _column(path: str) -> str:
    stage, _, rest = path.partition(".")
    return f"{stage}: {label_of(rest.removesuffix('.after'))}"


def _every_score(arms: Mapping[str, Mapping[str, Any]], paths: list[str]) -> Table | None:
    """All other scores, one a row, arms as columns."""
    rows = [(path, [_arm_cell(arm["scores"].get(path), path) for arm in arms.values()]) for path in paths]
    return Table("Every other score", list(arms), rows) if rows else None


def _grid_claims(arms: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Each claim by arm: in how many seeds it held, did not, or stayed open. One that no run decided is left out."""
    keys = dict.fromkeys(
        (c["stage"], c["claim"]) for arm in arms.values() for c in arm["claims"] if c["held"] or c["failed"]
    )
    rows = []
    for stage, claim in keys:
        cells = []
        for arm in arms.values():
            row = next((c for c in arm["claims"] if (c["stage"], c["claim"]) == (stage, claim)), None)
            if row is None:
                cells.append(Cell())
                continue
            total = row["held"] + row["failed"] + row["undecided"]
            rest = [f"{row[k]} {word}" for k, word in (("failed", "not"), ("undecided", "undecided")) if row[k]]
            cells.append(Cell(f"{row['held']} of {total}", ", ".join(rest)))
        rows.append((f"{stage}: {claim}", cells))
    return Table("Claims, in how many seeds they held", list(arms), rows) if rows else None
