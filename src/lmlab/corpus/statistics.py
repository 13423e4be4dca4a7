"""What is in a corpus and what each step dropped and why, counted from the documents themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from lmlab.corpus.arrow import compute as pc

EXAMPLES = 3
COLUMNS = ("id", "source", "split", "text", "bytes_read", "keep", "step", "reason", "language", "redacted")


def collect(tables: Iterable[pa.Table], sources: Iterable[str]) -> dict[str, Any]:
    """Statistics of tables with COLUMNS:

        {"sources": {NAME: {SPLIT: CELL}}, "totals": {SPLIT: CELL}}
        CELL = {"read": SIZE, "kept": SIZE, "dropped": {STEP: {REASON: SIZE + "examples": [id, ...]}},
                "languages": {code: documents}, "redacted": {kind: count}}
        SIZE = {"documents": n, "bytes": n}

    Bytes of `kept` are of the final text, all others of the text as it was read.
    """
    cells = {name: {split: _cell() for split in ("train", "heldout")} for name in sources}
    for table in tables:
        sizes = pc.binary_length(pc.cast(table["text"], pa.binary())).to_pylist()
        columns = [table[name].to_pylist() for name in COLUMNS if name != "text"]
        for size, (each, source, split, read, keep, step, reason, language, redacted) in zip(
            sizes, zip(*columns, strict=True), strict=True
        ):
            # A source may have parts with names of their own (`source_field`).
            cell = cells.setdefault(source, {side: _cell() for side in ("train", "heldout")})[split]
            _add(cell["read"], read)
            if keep:
                _add(cell["kept"], size)
                if language is not None:
                    cell["languages"][language] += 1
                cell["redacted"].update(redacted)
            else:
                entry = cell["dropped"].setdefault(step, {}).setdefault(reason, {**_size(), "examples": []})
                _add(entry, read)
                if len(entry["examples"]) < EXAMPLES:
                    entry["examples"].append(each)
    totals = {split: _total([cells[name][split] for name in cells]) for split in ("train", "heldout")}
    return {"sources": cells, "totals": totals}


def _size() -> dict[str, int]:
    return {"documents": 0, "bytes": 0}


def _cell() -> dict[str, Any]:
    return {"read": _size(), "kept": _size(), "dropped": {}, "languages": Counter(), "redacted": Counter()}


def _add(size: dict[str, Any], amount: int) -> None:
    size["documents"] += 1
    size["bytes"] += amount


def _total(cells: list[dict[str, Any]]) -> dict[str, Any]:
    total = _cell()
    for cell in cells:
        for which in ("read", "kept"):
            for key in total[which]:
                total[which][key] += cell[which][key]
        total["languages"].update(cell["languages"])
        total["redacted"].update(cell["redacted"])
        for step, reasons in cell["dropped"].items():
            for reason, entry in reasons.items():
                into = total["dropped"].setdefault(step, {}).setdefault(reason, {**_size(), "examples": []})
                into["documents"] += entry["documents"]
                into["bytes"] += entry["bytes"]
                into["examples"] = (into["examples"] + entry["examples"])[:EXAMPLES]
    return total


def summary(statistics: dict[str, Any], rejected: dict[str, int]) -> dict[str, Any]:
    """The shape of results.json: what is kept, what each step dropped, both splits together."""
    totals = statistics["totals"]
    dropped: dict[str, Any] = {}
    for cell in totals.values():
        for step, reasons in cell["dropped"].items():
            into = dropped.setdefault(step, {**_size(), "reasons": Counter()})
            for reason, entry in reasons.items():
                into["documents"] += entry["documents"]
                into["bytes"] += entry["bytes"]
                into["reasons"][reason] += entry["documents"]
    for entry in dropped.values():
        entry["reasons"] = dict(entry["reasons"].most_common())
    return {
        "documents": {split: cell["kept"]["documents"] for split, cell in totals.items()},
        "bytes": {split: cell["kept"]["bytes"] for split, cell in totals.items()},
        "read": {key: sum(cell["read"][key] for cell in totals.values()) for key in ("documents", "bytes")},
        "rejected": sum(rejected.values()),
        "sources": {
            name: {
                **{split: cell["kept"] for split, cell in cells.items()},
                "read": {key: sum(cell["read"][key] for cell in cells.values()) for key in ("documents", "bytes")},
                "rejected": rejected.get(name, 0),
            }
            for name, cells in statistics["sources"].items()
        },
        "dropped": dropped,
        "redacted": dict(totals["train"]["redacted"] + totals["heldout"]["redacted"]),
        "languages": dict((totals["train"]["languages"] + totals["heldout"]["languages"]).most_common()),
    }
