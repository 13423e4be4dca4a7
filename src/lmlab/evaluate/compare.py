"""Two runs, paired item by item: the difference with its interval, an exact test, and the items that flipped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import Refused, nearest
from lmlab.evaluate.metrics import score
from lmlab.measure import difference, ratio
from lmlab.progress import read_jsonl

Row = Mapping[str, Any]


def compare(run_a_items: Iterable[Row], run_b_items: Iterable[Row]) -> dict[str, Any]:
    """Compare two lists of rows of items.jsonl.

    Where both hold one stage's model only, these are compared whatever their names; else stage by stage. Returns
    {"stages": {STAGE: {TASK: {n, a, b, difference, p, p_holm, gained, lost}}}, "tests": count}: `a`, `b` and
    `difference` (b - a, paired bootstrap) are scores; `p` is of the exact sign test over items that differ, which for
    right and wrong is McNemar's (McNemar 1947); `p_holm` corrects it for all tests made (Holm 1979); `gained` and
    `lost` are the ids of items whose score rose and fell from a to b (for bits per byte a fall is the better). Raises
    Refused where the two do not hold the same items with the same prompts.
    """
    a, b = _by_stage(run_a_items, "the first run"), _by_stage(run_b_items, "the second run")
    if len(a) == len(b) == 1 and a.keys() != b.keys():
        name = f"{next(iter(a))} against {next(iter(b))}"
        a, b = {name: next(iter(a.values()))}, {name: next(iter(b.values()))}
    _same("stages", a, b)
    stages: dict[str, dict[str, Any]] = {}
    for stage, units in a.items():
        _same(f"{stage}: tasks", units, b[stage])
        stages[stage] = {task: _unit(f"{stage}: {task}", rows, b[stage][task]) for task, rows in units.items()}
    tests = [unit for units in stages.values() for unit in units.values()]
    _holm(tests)
    return {"stages": stages, "tests": len(tests)}


def _by_stage(rows: Iterable[Row], which: str) -> dict[str, dict[str, dict[str, Row]]]:
    """stage -> task -> id -> row."""
    found: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        try:
            unit = found.setdefault(row["stage"], {}).setdefault(row["task"], {})
            twice = row["id"] in unit
            unit[row["id"]] = row
        except KeyError as missing:
            raise Refused(f"{which}: a row of its items has no {missing}") from None
        if twice:
            raise Refused(f"{which}: item '{row['id']}' of {row['task']} stands twice")
    if not found:
        raise Refused(f"{which}: holds no items")
    return found


def _same(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if a.keys() == b.keys():
        return
    only = [sorted(left.keys() - right.keys()) for left, right in ((a, b), (b, a))]
    texts = [
        f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} only in the {side} run"
        for names, side in zip(only, ("first", "second"), strict=True)
        if names
    ]
    raise Refused(f"compare: {what} differ ({'; '.join(texts)}); runs are compared on the same items only")


def _unit(name: str, a: Mapping[str, Row], b: Mapping[str, Row]) -> dict[str, Any]:
    _same(f"{name}: items", a, b)
    other = [item for item in a if a[item]["prompt_hash"] != b[item]["prompt_hash"]]
    if other:
        raise Refused(
            f"compare: {name}: {len(other)} of {len(a)} prompts differ (first: item '{other[0]}'); the same questions "
            "were not put in the same words, so the difference would not be the models'"
        )
    ids = list(a)
    left, right = [a[item] for item in ids], [b[item] for item in ids]
    before, after = [float(row["score"]) for row in left], [float(row["score"]) for row in right]
    if "bytes" in left[0]:
        change = ratio([y["bits"] - x["bits"] for x, y in zip(left, right)], [row["bytes"] for row in left])
    else:
        change = difference(after, before)
    gained = [item for item, x, y in zip(ids, before, after, strict=True) if y > x]
    lost = [item for item, x, y in zip(ids, before, after, strict=True) if y < x]
    return {
        "n": len(ids),
        "a": score(left).to_json(),
        "b": score(right).to_json(),
        "difference": change.to_json(),
        "p": sign_test(len(gained), len(lost)),
        "gained": gained,
        "lost": lost,
    }


def sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p of the sign test: of the items that differ, each side is as likely under no difference."""
    n = gained + lost
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**n)


def _holm(tests: Sequence[dict[str, Any]]) -> None:
    """Holm's step-down correction, written into each test as `p_holm`."""
    least = 0.0
    for rank, test in enumerate(sorted(tests, key=lambda each: each["p"])):
        least = max(least, min(1.0, test["p"] * (len(tests) - rank)))
        test["p_holm"] = least


def compare_places(
    first: Path, second: Path, first_stage: str | None = None, second_stage: str | None = None
) -> dict[str, Any]:
    """Compare two evaluations on disk (see `read_items`), of all stages or of one stage's model each: so also two
    stages of one run."""
    return compare(read_items(first, first_stage), read_items(second, second_stage))


def read_items(place: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run directory's last evaluation, an evaluation's directory, or an items.jsonl; of one `stage`'s
    model if one is named. Raises Refused where there are none."""
    path = _find(place)
    rows = read_jsonl(path)
    if stage is None:
        return rows
    stages = {str(row.get("stage")) for row in rows}
    if stage not in stages:
        raise Refused(f"{path}: holds no items of stage '{stage}'{nearest(stage, stages)}")
    return [row for row in rows if row.get("stage") == stage]


def _find(place: Path) -> Path:
    if place.is_file():
        return place
    if (place / "items.jsonl").is_file():
        return place / "items.jsonl"
    try:
        listed: dict[str, Any] = json.loads((place / "run.json").read_text(encoding="utf-8")).get("stages", {})
    except (OSError, ValueError):
        listed = {}
    kinds = [name for name, entry in listed.items() if isinstance(entry, dict) and entry.get("kind") == "evaluate"]
    found = [place / name / "items.jsonl" for name in kinds if (place / name / "items.jsonl").is_file()]
    if not found:
        raise Refused(f"{place}: holds no evaluation: expected items.jsonl, or a run with a finished evaluate stage")
    return found[-1]


def describe_comparison(found: Mapping[str, Any]) -> str:
    """A comparison as lines for people."""
    lines = []
    for stage, units in found["stages"].items():
        lines.append(stage)
        for task, unit in units.items():
            change = unit["difference"]
            bounds = [f"{change[end]:+.3f}" if change[end] is not None else "unbounded" for end in ("low", "high")]
            lines.append(
                f"  {task}: {unit['a']['value']:.3f} -> {unit['b']['value']:.3f}, difference {change['value']:+.3f} "
                f"[{bounds[0]}, {bounds[1]}], n {unit['n']}, p {unit['p']:.3g} (of {found['tests']} tests: "
                f"{unit['p_holm']:.3g}), {len(unit['gained'])} rose, {len(unit['lost'])} fell"
            )
    return "\n".join(lines)
