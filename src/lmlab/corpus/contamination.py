"""Decontamination: training documents that repeat the held-out set, by word n-grams (see `Decontamination`).

Three passes: the n-grams of the held-out documents (in memory: about 40 bytes each); where they occur in each training
shard (a file a shard); and, with the common ones set aside, which documents hold too much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from lmlab.corpus.arrow import buffers
from lmlab.corpus.config import Decontamination
from lmlab.corpus.kernels import ngrams


@dataclass(frozen=True)
class Index:
    """The distinct n-grams of the held-out documents: sorted hashes, and for each the first document that holds it."""

    hashes: np.ndarray  # uint64 [n-grams], sorted
    owners: np.ndarray  # int64 [n-grams]: position in ids
    ids: list[str]
    sizes: np.ndarray  # int64 [documents]: n-grams that each owns


def build(documents: Sequence[tuple[str, str]], config: Decontamination) -> Index:
    """Index held-out (id, text) pairs."""
    hashes, owners, _, _ = ngrams(*buffers(pa.array([text for _, text in documents], pa.string())), config.ngram)
    unique, first = np.unique(hashes, return_index=True)
    owned = owners[first]
    return Index(unique, owned, [each for each, _ in documents], np.bincount(owned, minlength=len(documents)))


class MatchStep:
    """For training documents that are still kept: adds `matches`, a list of the n-grams found and where, and `ngrams`,
    how many the document has. Keeps only those columns and the id."""

    name = "match"

    def __init__(self, index: Index, config: Decontamination, identity: str) -> None:
        self.index, self.config = index, config
        self.identity = ["match", 1, config.ngram, identity]

    def __call__(self, table: pa.Table) -> pa.Table:
        hashes, rows, firsts, lasts = ngrams(*buffers(table["text"]), self.config.ngram)
        totals = np.bincount(rows, minlength=len(table))
        wanted = np.array(table["split"].to_pylist(), dtype=object) == "train"
        wanted &= table["keep"].to_numpy(zero_copy_only=False)
        index = self.index.hashes
        found = np.zeros(len(hashes), bool)
        at = np.zeros(len(hashes), np.int64)
        if len(index):
            at = np.minimum(np.searchsorted(index, hashes), len(index) - 1)
            found = (index[at] == hashes) & wanted[rows]
        offsets = np.zeros(len(table) + 1, np.int32)
        np.cumsum(np.bincount(rows[found], minlength=len(table)), out=offsets[1:])
        fields = [pa.array(column[found], pa.int64()) for column in (at, firsts, lasts)]
        matches = pa.ListArray.from_arrays(
            pa.array(offsets), pa.StructArray.from_arrays(fields, names=["gram", "first", "last"])
        )
        return pa.table({"id": table["id"], "ngrams": pa.array(totals, pa.int64()), "matches": matches})


@dataclass(frozen=True)
class Overlap:
    """What one training document shares with the held-out set."""

    row: int  # in corpus order
    id: str
    share: float  # of its own n-grams
    heldout: str  # the held-out document that it covers most
    heldout_share: float  # of that document's n-grams
    drop: bool
    spans: list[tuple[int, int]]  # bytes of the training document


def judge(tables: Sequence[pa.Table], index: Index, config: Decontamination) -> list[Overlap]:
    """Every training document that shares n-grams that are not common, in corpus order."""
    seen = np.zeros(len(index.hashes), np.int64)
    flat: list[tuple[np.ndarray, ...]] = []
    for table in tables:
        lists = table["matches"].combine_chunks()
        lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
        counts = np.diff(lists.offsets.to_numpy())
        values = lists.flatten()
        rows = np.repeat(np.arange(len(table)), counts)
        grams, firsts, lasts = (values.field(name).to_numpy() for name in ("gram", "first", "last"))
        pairs = np.unique(np.stack([rows, grams]), axis=1) if len(rows) else np.zeros((2, 0), np.int64)
        np.add.at(seen, pairs[1], 1)
        flat.append((rows, grams, firsts, lasts, pairs))
    rare = seen <= config.common
    results, before = [], 0
    for table, (rows, grams, firsts, lasts, pairs) in zip(tables, flat, strict=True):
        counted = rare[grams]
        totals = table["ngrams"].to_numpy()
        for row in np.unique(rows[counted]):
            here = slice(*np.searchsorted(rows, [row, row + 1]))
            mine = counted[here]
            distinct = pairs[1][slice(*np.searchsorted(pairs[0], [row, row + 1]))]
            owned = np.bincount(index.owners[distinct[rare[distinct]]], minlength=len(index.ids))
            shares = owned / np.maximum(index.sizes, 1)
            most = int(np.argmax(owned))
            covered = int(np.argmax(shares))
            share = float(mine.sum() / totals[row])
            # A held-out text of a few n-grams is covered by chance: it must own as many as one n-gram has words.
            leaks = shares[covered] >= config.heldout_share and index.sizes[covered] >= config.ngram
            drop = share >= config.document_share or bool(leaks)
            shown = covered if leaks else most
            spans = merge(firsts[here][mine], lasts[here][mine])
            results.append(
                Overlap(
                    before + int(row),
                    table["id"][int(row)].as_py(),
                    share,
                    index.ids[shown],
                    float(shares[shown]),
                    drop,
                    spans,
                )
            )
        before += len(table)
    return results


def merge(firsts: np.ndarray, lasts: np.ndarray) -> list[tuple[int, int]]:
    """Overlapping [first, last) spans joined, in order."""
    spans: list[tuple[int, int]] = []
    for first, last in sorted(zip(firsts.tolist(), lasts.tolist(), strict=True)):
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], last))
        else:
            spans.append((first, last))
    return spans


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
    }


def index_identity(index: Index) -> str:
    """What the match files depend on: the held-out n-grams and their documents."""
    return hashlib.sha256(index.hashes.tobytes() + "\n".join(index.ids).encode()).hexdigest()
