"""What each dropping step removes, by slice: does it take more of one register, dialect, topic, language or length?

Quality filters were found to remove dialect and colloquial text (survey, 4.1.2; Gururangan et al. 2022, 2201.10474). A
slice is a value of a column, of a field of the documents' `meta`, or a bin of length. For each slice: how many documents
reached the step, the share that it removed with Wilson's interval, and how many times the share of all other documents
that is (risk ratio, Katz et al. 1978), and the same of the share that stays: where nearly all goes, only that one tells
slices apart. A slice is warned of where the first is at least `ratio` or the second at most 1 / `ratio` (for 1.25 the
four-fifths rule of employment law), and its interval, widened for as many slices as were looked at (Bonferroni), does
not hold 1.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pyarrow as pa

from lmlab.corpus import store
from lmlab.errors import Refused, nearest
from lmlab.measure import proportion

ORDER = (
    "read", "normalise", "repeats", "language", "rules", "gopher", "c4", "fineweb", "roots", "keywords", "redact",
    "perplexity", "classifier", "duplicate_sentences", "exact_duplicates", "near_duplicates", "duplicate_substrings",
    "decontamination",
)  # fmt: skip
"""The order of the steps: a document reached a step if no step before it dropped it."""

COLUMNS = ("source", "language", "kind", "split", "perplexity_bucket")
LENGTHS = ((1_000, "under 1 kB"), (4_000, "1 to 4 kB"), (16_000, "4 to 16 kB"), (64_000, "16 to 64 kB"))
EXEMPT = "filters.json"
"""In a corpus: {step: [sources that it leaves alone]}, which are no part of that step's audit."""

RATIO = 1.25
LEAST = 20
"""A slice of fewer documents is shown, but not warned of."""
MOST = 40
"""Slices of one kind that are shown; the smallest are counted together."""


def length_bin(size: int) -> str:
    """Of a document as it was read, in bytes."""
    return next((name for limit, name in LENGTHS if size < limit), "64 kB and more")


def audit(
    stage_dir: Path, by: Sequence[str] = (), steps: Sequence[str] = (), *, ratio: float = RATIO
) -> dict[str, Any]:
    """Audit a finished corpus. by: `source`, `language`, `length`, `kind`, `split`, `perplexity_bucket`, or fields of
    `meta`; by default the first three and every field there is. steps: those that dropped something, by default.

    Returns {"path", "ratio", "steps": {STEP: {"removed": RATE, "slices": {BY: {VALUE: SLICE}}, "warnings": [text]}}}
    with RATE = {value, low, high, n} and SLICE = {"removed": RATE, "ratio": TIMES, "kept_ratio": TIMES, "warned": bool},
    TIMES = {value, low, high}.
    Raises Refused for an unknown name.
    """
    path = Path(stage_dir) / EXEMPT
    exempt = json.loads(path.read_text("utf-8")) if path.exists() else {}
    counts, fields = count(store.tables(stage_dir), by, exempt)
    dropped = sorted({step for *_, step in counts if step}, key=_place)
    for name in by:
        if name not in (*COLUMNS, "length") and name not in fields:
            raise Refused(f"--by {name}: no such column or meta field{nearest(name, (*COLUMNS, 'length', *fields))}")
    for name in steps:
        if name not in dropped:
            raise Refused(f"--step {name}: dropped nothing{nearest(name, dropped)}")
    found = {step: judge(counts, step, exempt.get(step, []), ratio) for step in steps or dropped}
    return {"path": str(stage_dir), "ratio": ratio, "steps": found}


def _place(step: str) -> tuple[int, str]:
    return (ORDER.index(step) if step in ORDER else len(ORDER), step)


Key = tuple[str, str, str, str | None]


def count(tables: Iterable[pa.Table], by: Sequence[str], exempt: dict[str, list[str]]) -> tuple[Counter[Key], set[str]]:
    """How many documents of (kind of slice, its value, source where that matters, step that dropped it or None), and
    the fields of `meta`. The kind "" counts all documents once."""
    counts: Counter[Key] = Counter()
    fields: set[str] = set()
    special = {source for sources in exempt.values() for source in sources}
    for table in tables:
        names = [
            name for name in COLUMNS if name in table.column_names and (name in by or (not by and name in COLUMNS[:2]))
        ]
        columns = [table[name].to_pylist() for name in names]
        sizes = table["bytes_read"].to_pylist()
        metas = table["meta"].to_pylist() if "meta" in table.column_names else [None] * len(sizes)
        for row, (source, keep, step) in enumerate(
            zip(table["source"].to_pylist(), table["keep"].to_pylist(), table["step"].to_pylist(), strict=True)
        ):
            group, left = (source if source in special else ""), (None if keep else step)
            counts["", "", group, left] += 1
            for name, column in zip(names, columns, strict=True):
                counts[name, str(column[row]), group, left] += 1
            if not by or "length" in by:
                counts["length", length_bin(sizes[row]), group, left] += 1
            for name, value in json.loads(metas[row] or "{}").items():
                fields.add(name)
                if not by or name in by:
                    counts[name, str(value), group, left] += 1
    return counts, fields


def judge(counts: Counter[Key], step: str, exempt: Sequence[str], ratio: float) -> dict[str, Any]:
    """One step's audit out of `count`'s answer. Pure."""
    reached: Counter[tuple[str, str]] = Counter()
    removed: Counter[tuple[str, str]] = Counter()
    for (kind, value, group, left), n in counts.items():
        if group in exempt or (left is not None and _place(left) < _place(step)):
            continue
        reached[kind, value] += n
        removed[kind, value] += n * (left == step)
    total, gone = reached["", ""], removed["", ""]
    names: dict[str, list[str]] = {}
    for kind, value in sorted(reached, key=lambda key: (-reached[key], key)):
        if kind:
            names.setdefault(kind, []).append(value)
    names = {kind: values for kind, values in names.items() if len(values) > 1}
    for kind, values in names.items():
        for value in values[MOST:]:
            reached[kind, "(others)"] += reached[kind, value]
            removed[kind, "(others)"] += removed[kind, value]
        names[kind] = values[:MOST] + (["(others)"] if len(values) > MOST else [])
    tested = sum(map(len, names.values()))
    wide = NormalDist().inv_cdf(1 - 0.025 / max(1, tested))
    slices: dict[str, Any] = {}
    warnings = []
    for kind, values in names.items():
        for value in values:
            n, x = reached[kind, value], removed[kind, value]
            times, spread = _ratio(x, n, gone - x, total - n)
            stays, stay_spread = _ratio(n - x, n, total - n - gone + x, total - n)
            more = times >= ratio and times * math.exp(-wide * spread) > 1
            less = stays <= 1 / ratio and stays * math.exp(wide * stay_spread) < 1
            warned = n >= LEAST and total > n and (more or less)
            slices.setdefault(kind, {})[value] = {
                "removed": proportion(x, n).to_json(),
                "ratio": _interval(times, spread),
                "kept_ratio": _interval(stays, stay_spread),
                "warned": warned,
            }
            if warned:
                text = f"{step} removes {x / n:.1%} of {kind} '{value}' ({x:,} of {n:,}) and "
                text += f"{(gone - x) / (total - n):.1%} of the rest: {times:.2f} times as much removed, "
                warnings.append(text + f"{stays:.2f} times as much kept")
    return {"removed": proportion(gone, total).to_json(), "slices": slices, "warnings": warnings}


def _interval(times: float, spread: float) -> dict[str, float]:
    half = math.exp(1.96 * spread)
    return {"value": times, "low": times / half, "high": times * half}


def _ratio(x: int, n: int, y: int, m: int) -> tuple[float, float]:
    """The risk ratio (x / n) / (y / m) and the deviation of its logarithm; half a document is added to every count
    where one is 0, so that both are finite."""
    if n == 0 or m == 0:
        return 1.0, 0.0
    add = 0.5 if 0 in (x, y) or (x == n and y == m) else 0.0
    a, b, c, d = x + add, n + add, y + add, m + add
    return (a / b) / (c / d), math.sqrt(max(0.0, 1 / a - 1 / b + 1 / c - 1 / d))


def format_audit(found: dict[str, Any]) -> str:
    """`audit`'s answer for a terminal."""
    out = [
        f"corpus {found['path']}: what each step removes, by slice (95% intervals), and how",
        "many times as much as of the rest it removes and keeps",
    ]
    for step, part in found["steps"].items():
        whole = part["removed"]
        out += ["", f"{step}: {whole['value']:.1%} of {whole['n']:,} documents that reached it"]
        for kind, values in part["slices"].items():
            for value, cell in values.items():
                rate, times, stays = cell["removed"], cell["ratio"], cell["kept_ratio"]
                out.append(
                    f"  {kind:<12.12} {value:<24.24} {rate['value']:>7.1%} [{rate['low']:.1%}, {rate['high']:.1%}] "
                    f"of {rate['n']:>8,}   removed {times['value']:.2f} [{times['low']:.2f}, {times['high']:.2f}]   "
                    f"kept {stays['value']:.2f} [{stays['low']:.2f}, {stays['high']:.2f}]"
                    + ("   WARNING" if cell["warned"] else "")
                )
        out += [f"  warning: {text}" for text in part["warnings"]]
    return "\n".join(out)
