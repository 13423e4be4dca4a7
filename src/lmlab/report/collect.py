"""Reads a run directory into the report's numbers: every stage that was asked for, finished or not.

    {run, lmlab, machine, seconds, missing, notes,
     stages: {NAME: {kind, status, seconds, headline, seed, fingerprint, settings, plan, curves, ...results.json}},
     claims: [{stage, claim, holds, evidence}]}

A file that is absent or damaged is noted and left out; nothing here raises for what a stage wrote or did not. Stages of
kind `report` are no part of a report, so that it is the same whether that stage or `lmlab report` writes it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.arms import RESERVED
from lmlab.config import read
from lmlab.errors import Refused
from lmlab.progress import read_jsonl
from lmlab.report.claims import ITEMS, judge
from lmlab.report.scores import number
from lmlab.report.tasks import items_of

POINTS = 240
"""Most points kept of a curve: about one for each pixel and a half of its plot."""
OWN = (
    "kind",
    "status",
    "seconds",
    "headline",
    "seed",
    "fingerprint",
    "finished",
    "settings",
    "plan",
    "machine",
    "curves",
)
"""Keys of a stage's entry that results.json cannot overwrite."""


def collect(run_dir: Path) -> dict[str, Any]:
    """The report of one run directory (a grid's is `lmlab.report.grid`'s). Raises Refused where there is no run."""
    if not run_dir.is_dir():
        raise Refused(f"{run_dir}: no such run directory")
    notes: list[str] = []
    recipe = _recipe(run_dir, notes)
    run = load(run_dir / "run.json", notes)
    listed = run.get("stages")
    listed = listed if isinstance(listed, dict) else {}
    names = dict.fromkeys([*recipe, *(str(name) for name in listed), *_folders(run_dir)])
    if not names:
        raise Refused(f"{run_dir}: is no run directory: expected run.json, recipe.yaml or a stage's folder in it")
    stages: dict[str, dict[str, Any]] = {}
    for name in names:
        entry = listed.get(name)
        stage = _stage(run_dir / name, entry if isinstance(entry, dict) else {}, recipe.get(name), notes)
        if stage["kind"] != "report":
            stages[name] = stage
    for name, stage in stages.items():
        for note in _doubts(stage):
            notes.append(f"{name}: {note}")
    items = {
        n: items_of(_rows(run_dir / n / "items.jsonl", notes)) for n, s in stages.items() if s["kind"] == "evaluate"
    }
    report = {
        "run": _name(run_dir.resolve()),
        "lmlab": __version__,
        "machine": next((s["machine"] for s in reversed(stages.values()) if s["machine"]), {}),
        "seconds": round(math.fsum(stage["seconds"] or 0.0 for stage in stages.values()), 3),
        "missing": [name for name, stage in stages.items() if stage["status"] != "done"],
        "notes": notes,
        "stages": stages,
        "claims": judge({n: {**s, ITEMS: items[n]} if n in items else s for n, s in stages.items()}),
    }
    return clean(report)


def _name(folder: Path) -> str:
    """The run's name; a run inside a grid is GRID/ARM/seed-N."""
    return "/".join(folder.parts[-3:]) if folder.name.startswith("seed-") else folder.name


def load(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object from disk; {} where it is absent, and a note where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.parent.name}/{path.name} cannot be read: {type(error).__name__}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.parent.name}/{path.name} holds no JSON object")
        return {}
    return value


def _recipe(run_dir: Path, notes: list[str]) -> dict[str, str]:
    """Stage name -> kind as the recipe asked for them; a run inside a grid finds the recipe two folders up."""
    for path in (run_dir / "recipe.yaml", run_dir.parent.parent / "recipe.yaml"):
        if path.is_file() and (path.parent == run_dir or run_dir.name.startswith("seed-")):
            try:
                data = read(path).data
            except (Refused, RecursionError):
                notes.append("recipe.yaml cannot be read")
                return {}
            return {
                str(name): str(given.get("use", name)) if isinstance(given, dict) else str(name)
                for name, given in data.items()
                if name not in RESERVED
            }
    return {}


def _folders(run_dir: Path) -> list[str]:
    """Folders that look like a stage's, in the order of their names."""
    marks = ("provenance.json", "state.json", "results.json")
    return [p.name for p in sorted(run_dir.iterdir()) if p.is_dir() and any((p / m).is_file() for m in marks)]


def _stage(folder: Path, entry: Mapping[str, Any], asked: str | None, notes: list[str]) -> dict[str, Any]:
    """One stage's entry: where it came from, how it ended, its curves, and whatever its results.json says."""
    provenance = load(folder / "provenance.json", notes)
    results = load(folder / "results.json", notes)
    if not results:  # the corpus stage's statistics.json holds the same counts
        results = load(folder / "statistics.json", notes)
    headline = provenance.get("headline", entry.get("headline"))
    if provenance:
        status = "done"
    elif entry.get("status") and folder.is_dir():
        status = "unfinished" if entry["status"] == "done" else str(entry["status"])
    else:
        status = "unfinished" if folder.is_dir() else "missing"
    kind = provenance.get("kind") or entry.get("kind") or asked or folder.name
    plan, settings = load(folder / "plan.json", notes), provenance.get("config")
    return {
        "kind": str(kind),
        "status": status,
        "seconds": number(provenance.get("seconds", entry.get("seconds"))),
        "headline": headline if isinstance(headline, dict) else {},
        "seed": provenance.get("seed"),
        "fingerprint": provenance.get("fingerprint", entry.get("fingerprint")),
        "finished": provenance.get("finished"),
        "settings": settings if isinstance(settings, dict) else {},
        "plan": plan,
        "machine": provenance["machine"] if isinstance(provenance.get("machine"), dict) else {},
        "curves": curves([*_rows(folder / "metrics.jsonl", notes), *_heldout(folder, notes)]),
        **{str(key): value for key, value in results.items() if key not in OWN},
    }


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        return read_jsonl(path)
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.parent.name}/{path.name} cannot be read: {type(error).__name__}")
        return []


def _heldout(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """What was measured while the model trained."""
    rows = _rows(folder / "heldout.jsonl", notes)
    return [{"step": row.get("step"), "bits_per_byte": row.get("bits_per_byte")} for row in rows]


def _doubts(stage: Mapping[str, Any]) -> Iterator[str]:
    if stage["status"] == "missing":
        yield "has not run"
    elif stage["status"] != "done":
        reason = stage["headline"].get("error")
        yield f"is not finished ({stage['status']}{': ' + str(reason) if reason else ''})"
    elif not stage.keys() - {*OWN}:
        yield "is finished but left no results.json"


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every number of metrics.jsonl as a curve {step, value}, thinned to at most POINTS points.

    A thinned curve's points are means over equal stretches of its own points, with `low` and `high` the least and the
    greatest value of each stretch. `not_finite` counts the values left out because they were no finite numbers.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    lost: dict[str, int] = {}
    for index, row in enumerate(rows):
        step = number(row.get("step"))
        for key, given in row.items():
            value = number(given)
            if key != "step" and value is not None:
                points.setdefault(str(key), []).append((index if step is None else step, value))
            elif isinstance(given, float):
                lost[str(key)] = lost.get(str(key), 0) + 1
    found: dict[str, dict[str, Any]] = {key: _thin(series) for key, series in points.items()}
    for key, count in lost.items():
        found.setdefault(key, {"step": [], "value": []})["not_finite"] = count
    return found


def _thin(points: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    count = len(points)
    if count <= POINTS:
        return {"step": [x for x, _ in points], "value": [_round(y) for _, y in points]}
    edges = [round(i * count / POINTS) for i in range(POINTS + 1)]
    groups = [points[a:b] for a, b in itertools.pairwise(edges)]
    return {
        "step": [_round(math.fsum(x for x, _ in g) / len(g)) for g in groups],
        "value": [_round(math.fsum(y for _, y in g) / len(g)) for g in groups],
        "low": [_round(min(y for _, y in g)) for g in groups],
        "high": [_round(max(y for _, y in g)) for g in groups],
    }


def _round(value: float) -> float:
    """Six significant digits: a plot shows three."""
    return float(f"{value:.6g}")


def clean(value: Any) -> Any:
    """A JSON value that can be written as UTF-8 and as strict JSON: no infinities, no lone surrogates, text keys."""
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
