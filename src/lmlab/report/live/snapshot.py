"""What a run directory says of its training right now, small enough to be asked for every other second."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmlab.errors import Refused
from lmlab.progress import read_jsonl
from lmlab.report.grid import runs_of

POINTS = 400
"""Most points of a curve: about one for each pixel and a half of its plot."""
CURVES = (
    ("loss", "Loss", "nats"),
    ("bits_per_byte", "Held-out text", "bits a byte"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("lr", "Learning rate", ""),
    ("tokens_per_second", "Tokens a second", ""),
    ("reward", "Reward", ""),
    ("kl", "KL to the start", "nats an answer"),
    ("accuracy", "Accuracy", ""),
    ("noise_scale", "Gradient noise scale", "tokens"),
)
"""(key in metrics.jsonl, title, unit), in the order of the page; what a run does not log has no plot."""


def snapshot(run_dir: Path) -> dict[str, Any]:
    """{run, stages: [{name, status, seconds, step, steps, left, curves, spikes, interventions, samples}], now}.

    `left` is the seconds that the rest should take, from the pace of the last steps; null where that is not known.
    Stages that wrote no metrics are left out. Raises Refused where there is no run, or where it is a grid.
    """
    if not run_dir.is_dir():
        raise Refused(f"{run_dir}: no such run directory")
    if runs_of(run_dir):
        inside = next(f"{arm}/seed-{seed}" for arm, seeds in runs_of(run_dir).items() for seed in seeds)
        raise Refused(f"{run_dir}: is a grid; watch one run of it, such as {run_dir / inside}")
    listed = _read(run_dir / "run.json").get("stages", {})
    folders = [path.parent for path in run_dir.glob("*/metrics.jsonl")]
    order = {name: place for place, name in enumerate(listed)}
    stages = [_stage(folder, listed.get(folder.name, {})) for folder in folders]
    stages.sort(key=lambda stage: (order.get(stage["name"], len(order)), stage["name"]))
    shown = [stage for stage in stages if stage["curves"]]
    return {"run": run_dir.resolve().name, "now": time.time(), "stages": shown}


def _stage(folder: Path, listed: Mapping[str, Any]) -> dict[str, Any]:
    rows = _by_step(read_jsonl(folder / "metrics.jsonl"), read_jsonl(folder / "heldout.jsonl"))
    last, interventions = max(rows, default=-1), _read_list(folder / "interventions.json")
    steps = _read(folder / "state.json").get("steps", _read(folder / "plan.json").get("steps"))
    return {
        "name": folder.name,
        "status": listed.get("status", "running"),
        "seconds": rows[last].get("seconds") if rows else None,
        "step": last + 1,
        "steps": steps if isinstance(steps, int) else None,
        "left": _left(rows, steps) if listed.get("status", "running") == "running" else None,
        "curves": [
            {"key": key, "title": title, "unit": unit, **_thin(points)}
            for key, title, unit in CURVES
            if len(points := [_point(step, row, key) for step, row in rows.items() if _is_number(row.get(key))]) > 1
        ],
        "spikes": _spikes(rows, interventions)[-200:],
        "interventions": interventions,
        "samples": read_jsonl(folder / "samples.jsonl")[-4:] or _final_samples(folder),
    }


def _spikes(rows: Mapping[int, Mapping[str, Any]], interventions: Iterable[Any]) -> list[int]:
    """Steps of spikes: those that the log marks, and those that were taken back, of which it knows nothing any more."""
    answered = {
        entry["step"] for entry in interventions if isinstance(entry, dict) and isinstance(entry.get("step"), int)
    }
    return sorted(answered | {step for step, row in rows.items() if row.get("spike")})


def _by_step(*files: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Rows of all files joined by step, in order of steps; of two that say the same the later one counts."""
    found: dict[int, dict[str, Any]] = {}
    for rows in files:
        for row in rows:
            if isinstance(row.get("step"), int):
                found.setdefault(row["step"], {}).update(row)
    return dict(sorted(found.items()))


Point = tuple[int, float, float, float]
"""Step, value, and the ends of its interval where it has one, else the value again."""


def _point(step: int, row: Mapping[str, Any], key: str) -> Point:
    value = float(row[key])
    low, high = (end if _is_number(end := row.get(f"{key}_{side}")) else value for side in ("low", "high"))
    return step, value, low, high  # type: ignore[return-value]


def _thin(points: list[Point]) -> dict[str, list[float]]:
    """At most POINTS of them, means over neighbours, so that a spike still shows as a bump; `low` and `high` bound them and
    their intervals."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return {
        "step": [group[-1][0] for group in groups],
        "value": [sum(value for _, value, _, _ in group) / len(group) for group in groups],
        "low": [min(low for _, _, low, _ in group) for group in groups],
        "high": [max(high for _, _, _, high in group) for group in groups],
    }


def _left(rows: Mapping[int, Mapping[str, Any]], steps: Any) -> float | None:
    timed = [(step, row["seconds"]) for step, row in rows.items() if _is_number(row.get("seconds"))][-50:]
    if not isinstance(steps, int) or len(timed) < 2:
        return None
    (first, begun), (last, now) = timed[0], timed[-1]
    pace = (now - begun) / (last - first)
    return max(0.0, (steps - last - 1) * pace)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is none yet, or only half of one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_list(path: Path) -> list[Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def _final_samples(folder: Path) -> list[Any]:
    samples = _read(folder / "results.json").get("samples", [])
    return samples[:4] if isinstance(samples, list) else []
