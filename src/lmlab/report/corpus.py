"""The page of a corpus: what is in it, how long its documents are, what was dropped and why, with real examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab import __version__
from lmlab.report.page import drawn, render
from lmlab.report.plots import Bars, bars
from lmlab.report.views import Cell, Table


def corpus_page(found: Mapping[str, Any]) -> str:
    """The page of what `lmlab.corpus.inspect.inspect` found. Without matplotlib it is a page without plots."""
    cells = [cell for splits in found["sources"].values() for cell in splits.values()]
    return render(
        "corpus.html.jinja",
        report={"run": _name(Path(found["path"])), "lmlab": __version__},
        read=f"{sum(cell['read']['documents'] for cell in cells):,}",
        kept=f"{sum(cell['kept']['documents'] for cell in cells):,}",
        sizes=_sizes(found),
        facts=_facts(found),
        figures=drawn(_figures, found),
        reasons=_reasons(found),
        examples=[
            (step, reason, shown)
            for step, reasons in found["dropped_samples"].items()
            for reason, shown in reasons.items()
        ],
        sources={name: kinds["kept"] for name, kinds in found["samples"].items()},
    )


def _name(place: Path) -> str:
    """The run's name; with the stage's where that is not `corpus`."""
    place = place.resolve()
    return place.parent.name if place.name == "corpus" else f"{place.parent.name}/{place.name}"


def _sizes(found: Mapping[str, Any]) -> Table:
    rows = []
    for name, splits in [*found["sources"].items(), ("all", found["totals"])]:
        for split, cell in splits.items():
            read, kept = cell["read"], cell["kept"]
            share = f"{kept['bytes'] / read['bytes']:.0%}" if read["bytes"] else "–"
            numbers = (read["documents"], kept["documents"], read["bytes"], kept["bytes"])
            rows.append((f"{name}, {split}", [*(Cell(f"{n:,}") for n in numbers), Cell(share)]))
    columns = ["documents read", "kept", "bytes read", "bytes kept", "share kept"]
    return Table("Documents and bytes, by source and split", columns, rows)


def _reasons(found: Mapping[str, Any]) -> Table | None:
    rows: dict[tuple[str, str], list[int]] = {}
    for cell in found["totals"].values():
        for step, reasons in cell["dropped"].items():
            for reason, entry in reasons.items():
                into = rows.setdefault((step, reason), [0, 0])
                into[0] += entry["documents"]
                into[1] += entry["bytes"]
    ordered = sorted(rows.items(), key=lambda item: -item[1][0])
    lines = [(f"{step}: {reason}", [Cell(f"{n:,}") for n in counts]) for (step, reason), counts in ordered]
    return Table("Dropped, by step and reason", ["documents", "bytes"], lines) if lines else None


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    both = {key: _together(found, key) for key in ("languages", "redacted")}
    rejected = {name: n for name, n in found["rejected"].items() if n}
    lengths = {name: f"{it['median']:,} (longest {it['longest']:,})" for name, it in found["lengths"].items()}
    return [
        ("languages", ", ".join(f"{name} {n:,}" for name, n in both["languages"].items()) or "none"),
        ("redacted", ", ".join(f"{name} {n:,}" for name, n in both["redacted"].items() if n) or "nothing"),
        ("records set aside unread", ", ".join(f"{name} {n:,}" for name, n in rejected.items()) or "none"),
        ("training documents that overlap with held-out ones", f"{found['overlaps']:,}"),
        ("median length in characters", ", ".join(f"{name} {text}" for name, text in lengths.items())),
    ]


def _together(found: Mapping[str, Any], key: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for cell in found["totals"].values():
        for name, n in cell[key].items():
            total[name] = total.get(name, 0) + n
    return dict(sorted(total.items(), key=lambda item: -item[1]))


def _figures(found: Mapping[str, Any]) -> list[str]:
    lengths = found["lengths"]
    places = range(max((len(it["powers_of_two"]) for it in lengths.values()), default=0))
    first = min((k for it in lengths.values() for k, n in enumerate(it["powers_of_two"]) if n), default=0)
    series = [Bars(name, [_at(it["powers_of_two"], k) for k in places if k >= first]) for name, it in lengths.items()]
    labels = [_power(k) for k in places if k >= first]
    languages = list(_together(found, "languages").items())[:12]
    kept = [Bars("documents", [n for _, n in languages])] if len(languages) > 1 else []
    return [
        bars("lengths", "Length of kept documents", labels, series, unit="characters, from the number on"),
        bars("languages", "Languages of kept documents", [name for name, _ in languages], kept, unit="documents"),
    ]


def _at(counts: list[int], k: int) -> int:
    return counts[k] if k < len(counts) else 0


def _power(k: int) -> str:
    return f"{2**k:,}" if k < 10 else f"{2 ** (k - 10):,}k" if k < 20 else f"{2 ** (k - 20):,}M"
