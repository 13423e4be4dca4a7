"""Looking into a corpus: what is in it, and the whole history of one document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmlab.corpus import store
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.dedup.curve import shown
from lmlab.errors import Refused, nearest
from lmlab.progress import read_jsonl

SAMPLE_CHARS = 300
JUDGED = ("classifier_score", "perplexity", "perplexity_bucket")


def inspect(stage_dir: Path, *, samples: int = 2) -> dict[str, Any]:
    """Sizes by source and split, languages, drop reasons with examples, rejects, overlaps with the held-out set, and
    `samples` beginnings of kept training documents and of dropped ones a source, and of those that a reason dropped.
    Of the kept documents' lengths (in characters) the median, the longest, and how many lie in [2^k, 2^(k+1)), from
    k = 0. Plain data, ready for JSON.
    """
    stage_dir = Path(stage_dir)
    store.parts(stage_dir)
    statistics = json.loads((stage_dir / "statistics.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "path": str(stage_dir),
        **statistics,
        "lengths": {},
        "samples": {},
        "dropped_samples": {},
        "first_rejects": read_jsonl(stage_dir / "rejected.jsonl")[:5],
        "overlaps": len(read_jsonl(stage_dir / "contamination.jsonl")),
        "deduplication": _json(stage_dir / "deduplication.json"),
        "decontamination": _json(stage_dir / "decontamination.json"),
    }
    lengths: dict[str, list[int]] = {}
    for table in store.tables(stage_dir, ["id", "source", "split", "text", "keep", "step", "reason"]):
        sizes = pc.utf8_length(table["text"]).to_pylist()
        for row, size in zip(table.to_pylist(), sizes, strict=True):
            mine = found["samples"].setdefault(row["source"], {"kept": [], "dropped": []})
            if row["keep"]:
                lengths.setdefault(row["source"], []).append(size)
            examples = mine["kept"] if row["keep"] else mine["dropped"]
            if len(examples) < samples and size and (row["split"] == "train" or not row["keep"]):
                why_not = {} if row["keep"] else {"step": row["step"], "reason": row["reason"]}
                examples.append({"id": row["id"], **why_not, "text": row["text"][:SAMPLE_CHARS]})
            if not row["keep"]:
                same = found["dropped_samples"].setdefault(row["step"], {}).setdefault(row["reason"], [])
                if len(same) < samples:
                    same.append({"id": row["id"], "text": row["text"][:SAMPLE_CHARS]})
    for source, sizes in lengths.items():
        ordered = sorted(sizes)
        counts = [0] * max(1, ordered[-1].bit_length())
        for size in ordered:
            counts[max(0, size.bit_length() - 1)] += 1
        found["lengths"][source] = {
            "median": ordered[len(ordered) // 2],
            "longest": ordered[-1],
            "powers_of_two": counts,
        }
    return found


def _json(path: Path) -> dict[str, Any]:
    """A file that corpora of earlier versions do not have."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def why(stage_dir: Path, document: str) -> dict[str, Any]:
    """The whole history of one document: where it came from, its split, what each step found, and whether and why it
    was dropped. Raises Refused, with the nearest id, if there is none of that id.
    """
    stage_dir = Path(stage_dir)
    known: list[str] = []
    for table in store.tables(stage_dir):
        rows = table.filter(pc.equal(table["id"], document)).to_pylist()
        if rows:
            return _history(stage_dir, rows[0])
        known += table["id"].to_pylist()
    for reject in read_jsonl(stage_dir / "rejected.jsonl"):
        if document.startswith(f"{reject['source']}/{reject['file']}#"):
            return {"id": document, "kept": False, "step": "read", **reject}
    hint = nearest(document, known[:20_000])
    raise Refused(
        f"{stage_dir}: no document '{document}'" + (hint if hint.startswith(";") else f" among {len(known):,}")
    )


def _history(stage_dir: Path, row: dict[str, Any]) -> dict[str, Any]:
    signals = {name: round(value, 4) for name, value in (row.get("signals") or {}).items()}
    overlap = [line for line in read_jsonl(stage_dir / "contamination.jsonl") if line["id"] == row["id"]]
    return {
        "id": row["id"],
        "kept": row["keep"],
        "step": row["step"],
        "reason": row["reason"],
        "source": row["source"],
        "path": row["path"],
        "row": row["row"],
        "split": row["split"],
        "kind": row["kind"],
        "bytes_read": row["bytes_read"],
        "bytes_now": len(row["text"].encode("utf-8")),
        "language": row["language"],
        "language_probability": row["language_probability"],
        "signals": signals,
        **_judged(row),
        "redacted": row["redacted"],
        "duplicate_of": row["duplicate_of"],
        "similarity": row["similarity"],
        "heldout_overlap": next((line for line in overlap if line.get("set", "heldout") == "heldout"), None),
        "evaluation_overlaps": [line for line in overlap if line.get("set", "heldout") != "heldout"],
        "cuts": row.get("cuts") or [],
        "text": row["text"],
    }


def _judged(row: dict[str, Any]) -> dict[str, Any]:
    """What the rule sets and the models found: columns that are there only where such a step was on."""
    structs = {name: row[name] for name in row if name.endswith(("_signals", "_repetition")) and row[name]}
    rounded = {name: {k: None if v is None else round(v, 4) for k, v in each.items()} for name, each in structs.items()}
    return {**rounded, **{name: row[name] for name in JUDGED if row.get(name) is not None}}


def format_inspect(found: dict[str, Any]) -> str:
    """`inspect`'s answer for a terminal."""
    out = [f"corpus {found['path']}", ""]
    head = f"{'source':<16}{'split':<9}{'read':>9}{'kept':>9}{'dropped':>9}{'kept bytes':>14}"
    out += [head, "-" * len(head)]
    for name, cells in [*found["sources"].items(), ("all", found["totals"])]:
        for split, cell in cells.items():
            read, kept = cell["read"]["documents"], cell["kept"]["documents"]
            out.append(f"{name:<16}{split:<9}{read:>9,}{kept:>9,}{read - kept:>9,}{cell['kept']['bytes']:>14,}")
    out += ["", "dropped, by step and reason (documents, bytes, examples):"]
    for split, cell in found["totals"].items():
        for step, reasons in cell["dropped"].items():
            for reason, entry in sorted(reasons.items(), key=lambda item: -item[1]["documents"]):
                examples = ", ".join(entry["examples"][:2])
                line = f"  {split:<8} {step:<18}{reason:<38}{entry['documents']:>7,}{entry['bytes']:>12,}  {examples}"
                out.append(line)
    for title, key in (("languages", "languages"), ("redacted", "redacted")):
        both: dict[str, int] = {}
        for cell in found["totals"].values():
            for name, n in cell[key].items():
                both[name] = both.get(name, 0) + n
        listed = ", ".join(f"{name} {n:,}" for name, n in sorted(both.items(), key=lambda item: -item[1]) if n)
        out.append(f"{title}: {listed or 'none'}")
    rejected = ", ".join(f"{name} {n:,}" for name, n in found["rejected"].items() if n)
    out.append(f"set aside unread: {rejected or 'none'}")
    out.append(f"training documents that share n-grams with held-out ones: {found['overlaps']:,} (contamination.jsonl)")
    out += _evaluation_sets(found["decontamination"])
    for source, length in found["lengths"].items():
        out.append(f"{source}: median {length['median']:,} characters, longest {length['longest']:,}")
    out += _curve(found["deduplication"].get("curve"))
    for source, kinds in found["samples"].items():
        for which, examples in kinds.items():
            for sample in examples:
                note = f" by {sample['step']}: {sample['reason']}" if "step" in sample else ""
                body = "\n".join(f"    {line}" for line in sample["text"].split("\n")[:6])
                out += ["", f"{source}, {which}{note}: {sample['id']}", body]
    return "\n".join(out)


def _curve(found: dict[str, Any] | None) -> list[str]:
    return ["", "how likely near duplicates were to be found, by Jaccard similarity:", shown(found)] if found else []


def _evaluation_sets(found: dict[str, Any]) -> list[str]:
    return [
        f"evaluation set {name}: {len(each['not_clean']):,} of {each['items']:,} items stand in training documents "
        f"({each['ngram']}-grams, rule {each['rule']}), {len(each['clean']):,} are clean, "
        f"{len(each['too_short']):,} too short to say (decontamination.json)"
        for name, each in found.items()
    ]


def format_why(found: dict[str, Any]) -> str:
    """`why`'s answer for a terminal."""
    if "path" not in found:
        return f"{found['id']}: set aside unread at {found['file']}:{found['line']}: {found['reason']}"
    out = [f"{found['id']}: " + ("kept" if found["kept"] else f"dropped by {found['step']}: {found['reason']}")]
    out.append(
        f"read: source {found['source']}, file {found['path']}, row {found['row']}, {found['bytes_read']:,} bytes"
    )
    out.append(f"split: {found['split']}   kind: {found['kind']}   bytes now: {found['bytes_now']:,}")
    if found["language"]:
        sure = found["language_probability"]
        out.append(f"language: {found['language']}" + (f" (probability {sure:.3f})" if sure is not None else ""))
    out.append("signals: " + ", ".join(f"{name} {value:g}" for name, value in found["signals"].items()))
    for name, values in found.items():
        if name.endswith(("_signals", "_repetition")):
            shown = ", ".join(f"{signal} {value:g}" for signal, value in values.items() if value is not None)
            out.append(f"{name.replace('_', ' ')}: {shown}")
    if judged := ", ".join(f"{name.replace('_', ' ')} {found[name]}" for name in JUDGED if name in found):
        out.append(f"models: {judged}")
    counts = found["redacted"] or {}
    out.append("redacted: " + (", ".join(f"{n} {name}" for name, n in counts.items() if n) or "nothing"))
    if found["duplicate_of"]:
        out.append(f"copy of: {found['duplicate_of']} (similarity {found['similarity']:.3f})")
    if overlap := found["heldout_overlap"]:
        out.append(
            f"held-out overlap: {overlap['share']:.1%} of its n-grams; "
            f"{overlap['heldout_share']:.1%} of those of {overlap['heldout']}"
        )
        out += [f"    bytes {span['bytes'][0]}-{span['bytes'][1]}: {span['text'][:100]!r}" for span in overlap["spans"]]
    for overlap in found["evaluation_overlaps"]:
        out.append(
            f"overlap with {overlap['set']}: {overlap['heldout_share']:.1%} of the n-grams of {overlap['heldout']}"
        )
    for each in found["cuts"]:
        out.append(f"cut by {each['step']} at byte {each['first']:,}: {each['text'][:100]!r}")
    out += ["", found["text"][:2000]]
    return "\n".join(out)
