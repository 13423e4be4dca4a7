"""Where the n-grams of an index stand in training documents, and which documents hold too much."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmlab.corpus import engine
from lmlab.corpus.contamination.config import Decontamination
from lmlab.corpus.contamination.index import Index
from lmlab.corpus.dedup.cut import merge
from lmlab.corpus.dedup.units import ngrams

HELDOUT = "heldout"
"""The name of the index of held-out documents."""


class MatchStep:
    """For training documents that are still kept, and for the i-th index: adds `matches_i`, a list of the n-grams found
    and where, and `ngrams_i`, how many the document has. Keeps only those columns and the id."""

    name = "match"

    def __init__(self, indexes: Sequence[Index], identity: Sequence[str] = ()) -> None:
        self.indexes = list(indexes)
        self.identity = ["match", 2, list(identity)]

    def __call__(self, table: pa.Table) -> pa.Table:
        wanted = np.array(table["split"].to_pylist(), dtype=object) == "train"
        wanted &= table["keep"].to_numpy(zero_copy_only=False)
        columns: dict[str, Any] = {"id": table["id"]}
        grams = {n: ngrams(table["text"], n) for n in {index.ngram for index in self.indexes}}
        for i, index in enumerate(self.indexes):
            hashes, rows, firsts, lasts = grams[index.ngram]
            found = np.zeros(len(hashes), bool)
            at = np.zeros(len(hashes), np.int64)
            maybe = np.flatnonzero(wanted[rows] & index.sieve[hashes >> index.shift])
            if len(maybe):
                at[maybe] = np.minimum(np.searchsorted(index.hashes, hashes[maybe]), len(index.hashes) - 1)
                found[maybe] = index.hashes[at[maybe]] == hashes[maybe]
            offsets = np.zeros(len(table) + 1, np.int32)
            np.cumsum(np.bincount(rows[found], minlength=len(table)), out=offsets[1:])
            fields = [pa.array(column[found], pa.int64()) for column in (at, firsts, lasts)]
            columns[f"ngrams_{i}"] = pa.array(np.bincount(rows, minlength=len(table)), pa.int64())
            columns[f"matches_{i}"] = pa.ListArray.from_arrays(
                pa.array(offsets), pa.StructArray.from_arrays(fields, names=["gram", "first", "last"])
            )
        return pa.table(columns)


@dataclass(frozen=True)
class Matches:
    """One table's matches with one index."""

    rows: np.ndarray  # int64 [matches]
    grams: np.ndarray  # int64 [matches]
    firsts: np.ndarray
    lasts: np.ndarray
    pairs: np.ndarray  # int64 [2, distinct]: (row, n-gram), sorted


def matches(table: pa.Table, number: int) -> Matches:
    lists = table[f"matches_{number}"].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    values = lists.flatten()
    rows = np.repeat(np.arange(len(table)), np.diff(lists.offsets.to_numpy()))
    grams, firsts, lasts = (values.field(name).to_numpy() for name in ("gram", "first", "last"))
    pairs = np.unique(np.stack([rows, grams]), axis=1) if len(rows) else np.zeros((2, 0), np.int64)
    return Matches(rows, grams, firsts, lasts, pairs)


def seen(tables: Iterable[pa.Table], indexes: Sequence[Index]) -> list[np.ndarray]:
    """In how many training documents each n-gram of each index stands, int32."""
    counts = [np.zeros(len(index.hashes), np.int32) for index in indexes]
    for table in tables:
        for number, count in enumerate(counts):
            np.add.at(count, matches(table, number).pairs[1], 1)
    return counts


@dataclass(frozen=True)
class Overlap:
    """What one training document shares with what is measured with."""

    row: int  # in its part
    id: str
    set: str
    share: float  # of its own n-grams
    heldout: str  # the held-out document or item that it covers most
    heldout_share: float  # of that document's n-grams
    drop: bool
    spans: list[tuple[int, int]]  # bytes of the training document


def judge(
    tables: Iterable[pa.Table], indexes: Sequence[Index], counts: Sequence[np.ndarray], config: Decontamination
) -> Iterator[Overlap]:
    """Every training document that shares n-grams that are not common, by row and then by index. Held-out documents
    leak by the document's share too, items of evaluation sets by their own alone."""
    before = 0
    for table in tables:
        results = []
        for number, (index, count) in enumerate(zip(indexes, counts, strict=True)):
            found = matches(table, number)
            rare = (count <= config.common)[found.grams]
            totals = table[f"ngrams_{number}"].to_numpy()
            heldout = index.name == HELDOUT
            for row in np.unique(found.rows[rare] if heldout else found.rows):
                here = slice(*np.searchsorted(found.rows, [row, row + 1]))
                grams, mine = found.grams[here], rare[here]
                most = _most(index, np.unique(grams[mine]), index.least)
                if not heldout and not most.leaks:
                    # An item that stands in many documents makes its own n-grams common: half of it is no chance.
                    mine = np.ones(len(grams), bool)
                    most = _most(index, np.unique(grams), np.full(len(index.ids), config.heldout_share))
                share = float(mine.sum() / totals[row])
                drop = most.leaks or (heldout and share >= config.document_share)
                ends = merge(found.firsts[here][mine], found.lasts[here][mine])[:2]
                spans = list(zip(*(each.tolist() for each in ends), strict=True))
                name, owner = table["id"][int(row)].as_py(), index.ids[most.document]
                results.append(Overlap(before + int(row), name, index.name, share, owner, most.share, drop, spans))
        yield from sorted(results, key=lambda overlap: overlap.row)
        before += len(table)


@dataclass(frozen=True)
class _Most:
    document: int
    share: float
    leaks: bool


def _most(index: Index, grams: np.ndarray, least: np.ndarray) -> _Most:
    """Of the index's documents that hold these n-grams (at least one), the one to be named: the one that is covered
    most, where that leaks, else the one that owns most of them."""
    if not len(grams):
        return _Most(0, 0.0, False)
    sizes = index.starts[grams + 1] - index.starts[grams]
    places = np.repeat(index.starts[grams], sizes) + np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    names, owned = np.unique(index.owners[places], return_counts=True)
    shares = owned / np.maximum(index.sizes[names], 1)
    covered = int(np.argmax(shares))
    name = names[covered]
    # A held-out text of a few n-grams is covered by chance: it must own as many as one n-gram has words.
    leaks = bool(shares[covered] >= least[name] and index.sizes[name] >= index.smallest[name])
    shown = covered if leaks else int(np.argmax(owned))
    return _Most(int(names[shown]), float(shares[shown]), leaks)


def report(overlap: Overlap, text: str, *, spans: int = 5, chars: int = 300) -> dict[str, Any]:
    """One line of contamination.jsonl: the document, what it shares, and the longest matching passages."""
    raw = text.encode("utf-8")
    longest = sorted(overlap.spans, key=lambda span: (span[0] - span[1], span))[:spans]
    return {
        "id": overlap.id,
        "dropped": overlap.drop,
        "share": round(overlap.share, 4),
        "heldout": overlap.heldout,
        "heldout_share": round(overlap.heldout_share, 4),
        "spans": [{"bytes": [a, b], "text": raw[a:b].decode("utf-8", "replace")[:chars]} for a, b in sorted(longest)],
        "set": overlap.set,
    }


OVERLAPS = pa.schema(
    [
        ("row", pa.int64()), ("id", pa.string()), ("set", pa.string()), ("share", pa.float64()),
        ("heldout", pa.string()), ("heldout_share", pa.float64()), ("drop", pa.bool_()),
        ("spans", pa.list_(pa.list_(pa.int64()))),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class JudgeTask:
    """Maps a part's matches to its overlaps."""

    matches: Path
    indexes: Sequence[Index]
    counts: Path
    config: Decontamination

    def tables(self) -> Iterator[pa.Table]:
        counts = [np.load(self.counts / f"{i}.npy", mmap_mode="r") for i in range(len(self.indexes))]
        found = [vars(each) for each in judge(engine.read_shard(self.matches), self.indexes, counts, self.config)]
        yield pa.Table.from_pylist([{**each, "spans": [list(s) for s in each["spans"]]} for each in found], OVERLAPS)
