"""Decontamination over the whole corpus: index, match, judge; then one more step for each part, and the reports."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmlab.corpus import engine
from lmlab.corpus.arrow import compute as pc
from lmlab.corpus.contamination import sets
from lmlab.corpus.contamination.config import Decontamination
from lmlab.corpus.contamination.index import Index, build, save
from lmlab.corpus.contamination.match import HELDOUT, JudgeTask, MatchStep, Overlap, report, seen
from lmlab.corpus.dedup.cut import cut
from lmlab.corpus.dedup.passes import Do
from lmlab.corpus.dedup.shuffle import PLACE, Part, row_of
from lmlab.corpus.engine import Task
from lmlab.corpus.steps.step import drop
from lmlab.run import digest, folder_atomic, write_json

COLUMNS = ("id", "source", "split", "kind", "text", "keep", "step", "reason")
NAMED = 20
"""Training documents that the report names for an item."""
_LINE = pa.schema([("line", pa.string())])


class ContaminationStep:
    """Adds `heldout_overlap`, the share of a document's n-grams that stand in held-out ones, and drops or cuts what the
    part's overlaps say."""

    name = "decontamination"

    def __init__(self, overlaps: Path | None, config: Decontamination, key: str) -> None:
        self.overlaps, self.config = overlaps, config
        self.identity = ["decontamination", 1, config.model_dump(), key]

    def __call__(self, table: pa.Table) -> pa.Table:
        shares: list[float | None] = [None] * len(table)
        reasons: list[str | None] = [None] * len(table)
        spans: list[tuple[int, int, int]] = []
        first = int(row_of(table[PLACE][0].as_py())) if len(table) else 0
        for overlap in self._of(first, len(table)):
            row = overlap["row"] - first
            if overlap["set"] == HELDOUT:
                shares[row] = round(overlap["share"], 4)
            if overlap["drop"] and self.config.action == "drop":
                reasons[row] = reasons[row] or self._why(overlap)
            elif overlap["drop"] and self.config.action == "cut":
                spans += [(row, a, b) for a, b in overlap["spans"]]
        table = table.append_column("heldout_overlap", pa.array(shares, pa.float32()))
        if self.config.action == "cut":
            table, more = self._cut(table, spans)
            reasons = [a or b for a, b in zip(reasons, more, strict=True)]
        return drop(table, self.name, reasons)

    def _of(self, first: int, rows: int) -> list[dict[str, Any]]:
        if self.overlaps is None:
            return []
        found = []
        for table in engine.read_shard(self.overlaps):
            here = pc.and_(pc.greater_equal(table["row"], first), pc.less(table["row"], first + rows))
            found += table.filter(here).to_pylist()
        return found

    def _why(self, overlap: dict[str, Any]) -> str:
        if overlap["set"] == HELDOUT:
            return f"repeats held-out text ({self.config.ngram}-grams)"
        return f"repeats items of {overlap['set']}"

    def _cut(self, table: pa.Table, spans: Sequence[tuple[int, int, int]]) -> tuple[pa.Table, list[str | None]]:
        """GPT-3's cut: the spans with characters around them, small pieces, documents in too many pieces."""
        reasons: list[str | None] = [None] * len(table)
        gone = []
        for row in sorted({row for row, _, _ in spans}):
            raw = table["text"][row].as_py().encode("utf-8")
            pieces = around(raw, [(a, b) for r, a, b in spans if r == row], self.config.around)
            if len(pieces) > self.config.pieces:
                reasons[row] = f"repeats what is measured with, in more than {self.config.pieces} pieces"
                continue
            kept = [(a, b) for a, b in pieces if len(raw[a:b].decode("utf-8", "ignore")) >= self.config.piece]
            if not kept:
                reasons[row] = f"repeats what is measured with, no piece of {self.config.piece} characters left"
                continue
            edges = [0, *(edge for piece in kept for edge in piece), len(raw)]
            gone += [(a, b, row) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]
        columns = np.array(gone, np.int64).reshape(-1, 3).T
        return cut(table, self.name, columns[0], columns[1], columns[2]), reasons


def around(raw: bytes, spans: Sequence[tuple[int, int]], characters: int) -> list[tuple[int, int]]:
    """The pieces of a text that stay when byte spans go with so many characters on each side."""
    pieces, at = [], 0
    for span in sorted(spans):
        first, last = span
        for _ in range(characters):
            first, last = _before(raw, first), _after(raw, last)
        if first > at:
            pieces.append((at, first))
        at = max(at, last)
    if at < len(raw):
        pieces.append((at, len(raw)))
    return pieces


def _before(raw: bytes, at: int) -> int:
    at = max(0, at - 1)
    while at > 0 and raw[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _after(raw: bytes, at: int) -> int:
    at = min(len(raw), at + 1)
    while at < len(raw) and raw[at] & 0xC0 == 0x80:
        at += 1
    return at


def contamination_pass(parts: list[Part], config: Decontamination, out: Path, work: Path, do: Do) -> list[Part]:
    """Find training documents that repeat what is measured with; writes contamination.jsonl and decontamination.json."""
    if not config.enabled:
        _lines(out / "contamination.jsonl", iter(()))
        return [part.then(ContaminationStep(None, config, "")) for part in parts]
    indexes = list(_indexes(_heldout(parts, work / "heldout", do), config, work / "measured"))
    step = MatchStep(indexes, [index.identity for index in indexes])
    matching = [
        Task(_Projected(part), [step], work / "matches" / f"part-{part.number:05d}.parquet", part.key) for part in parts
    ]
    do("decontaminating", matching)
    counts = seen((table for task in matching for table in engine.read_shard(task.out)), indexes)
    with folder_atomic(work / "seen") as folder:
        for i, count in enumerate(counts):
            np.save(folder / f"{i}.npy", count, allow_pickle=False)
    key = digest([*(task.key for task in matching), config.model_dump()])
    judging = [
        Task(
            JudgeTask(task.out, indexes, work / "seen", config).tables, [], work / "overlaps" / task.out.name,
            digest([task.key, key]),
        )
        for task in matching
    ]  # fmt: skip
    do("decontaminating", judging)
    found = [task.out for task in judging]
    reporting = [
        Task(_Reports(part, path), [], work / "reports" / path.name, digest([part.key, key]), _LINE)
        for part, path in zip(parts, found, strict=True)
    ]
    do("decontaminating", reporting)
    lines = (table["line"].to_pylist() for task in reporting for table in engine.read_shard(task.out))
    _lines(out / "contamination.jsonl", itertools.chain.from_iterable(lines))
    _items(out / "decontamination.json", indexes, counts, found, config)
    return [part.then(ContaminationStep(path, config, key)) for part, path in zip(parts, found, strict=True)]


class _Projected:
    """A part's documents with the columns that matching needs."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self) -> Iterator[pa.Table]:
        return self.part.tables(COLUMNS)


class _Heldout:
    """A part's held-out documents that are still kept."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __call__(self) -> Iterator[pa.Table]:
        for table in self.part.tables(COLUMNS):
            yield table.filter((pc.field("split") == "heldout") & pc.field("keep")).select(["id", "text"])


class _Reports:
    """A part's lines of contamination.jsonl."""

    def __init__(self, part: Part, overlaps: Path) -> None:
        self.part, self.overlaps = part, overlaps

    def __call__(self) -> Iterator[pa.Table]:
        wanted: dict[int, list[Overlap]] = {}
        for table in engine.read_shard(self.overlaps):
            for line in table.to_pylist():
                spans: dict[str, Any] = {"spans": [tuple(span) for span in line["spans"]]}
                wanted.setdefault(line["row"], []).append(Overlap(**{**line, **spans}))
        if not wanted:
            return
        row = 0
        for table in self.part.tables(COLUMNS):
            rows = sorted(wanted.keys() & range(row, row + len(table)))
            found = [report(each, table["text"][i - row].as_py()) for i in rows for each in wanted[i]]
            yield pa.table({"line": [json.dumps(each, ensure_ascii=False) for each in found]}, schema=_LINE)
            row += len(table)


def _indexes(documents: Iterator[tuple[str, str]], config: Decontamination, folder: Path) -> Iterator[Index]:
    heldout = build(HELDOUT, documents, config.ngram, least=config.heldout_share, smallest=config.ngram, shared=False)
    yield save(heldout, folder / HELDOUT)
    for place, each in enumerate(config.evaluation):
        where = f"decontamination.evaluation[{place}]"
        ngram = sets.size_of_ngram(each, (text for _, text in sets.items(each, where)))
        yield save(build(each.name, sets.items(each, where), ngram, least=each.least), folder / each.name)


def _heldout(parts: Sequence[Part], folder: Path, do: Do) -> Iterator[tuple[str, str]]:
    """(id, text) of the held-out documents of all parts."""
    tasks = [Task(_Heldout(part), [], folder / f"part-{part.number:05d}.parquet", part.key) for part in parts]
    do("decontaminating", tasks)
    for task in tasks:
        for table in engine.read_shard(task.out):
            yield from zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)


def _lines(path: Path, lines: Iterator[str]) -> None:
    """JSON Lines, whole or not at all, without holding them."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _items(
    path: Path,
    indexes: Sequence[Index],
    counts: Sequence[np.ndarray],
    overlaps: Sequence[Path],
    config: Decontamination,
) -> None:
    """decontamination.json: of each evaluation set, which items are not clean, and by which training documents.

    An item's share is of its distinct n-grams that stand in any training document as it was before decontamination; an
    item of fewer words than an n-gram cannot be judged, and is named as such.
    """
    holders: dict[tuple[str, str], list[str]] = {}
    for shard in overlaps:
        for table in engine.read_shard(shard, ["id", "set", "heldout"]):
            for line in table.to_pylist():
                holders.setdefault((line["set"], line["heldout"]), []).append(line["id"])
    found = {}
    rules = {each.name: each for each in config.evaluation}
    for index, count in zip(indexes, counts, strict=True):
        if index.name == HELDOUT:
            continue
        hit = np.repeat(count > 0, np.diff(index.starts))
        shares = np.bincount(index.owners, weights=hit, minlength=len(index.ids)) / np.maximum(index.sizes, 1)
        dirty = np.flatnonzero((shares >= index.least) & (index.sizes > 0))
        clean = np.flatnonzero((shares < index.least) & (index.sizes > 0))
        found[index.name] = {
            "path": rules[index.name].path,
            "rule": rules[index.name].rule,
            "ngram": index.ngram,
            "least_share": float(rules[index.name].least),
            "items": len(index.ids),
            "not_clean": [
                {
                    "id": index.ids[i],
                    "share": round(float(shares[i]), 4),
                    "documents": holders.get((index.name, index.ids[i]), [])[:NAMED],
                }
                for i in dirty
            ],
            "clean": [index.ids[i] for i in clean],
            "too_short": [index.ids[i] for i in np.flatnonzero(index.sizes == 0)],
            "mean_share": round(float(shares[index.sizes > 0].mean()), 6) if (index.sizes > 0).any() else None,
        }
    write_json(path, found)
