"""Duplicate documents: exact by hash, near by MinHash and locality-sensitive hashing, clusters by union-find.

Three files a part: what comparison needs of each document (`index`), its hash as a key (`exact`), its signature's bands
as keys (`bands`). On disk that is 16 x bands + 4 x permutations + 65 bytes a document, and the id. In the memory of the
process that drives the build: 32 bytes a document, and some 100 more for each that has a copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmlab.corpus.dedup import kernels
from lmlab.corpus.dedup.index import Index, NearDuplicates, matrix
from lmlab.corpus.dedup.shuffle import PLACE, Records, batch, gather, part_of, row_of, runs
from lmlab.corpus.steps.step import drop

WINDOW = 256
"""In a bucket of more documents than this, each is compared with so many before it: with all, the cost would grow with
the square of the bucket."""
BLOCK = 1 << 15
"""Documents whose signatures a range holds at a time."""


# --- exact copies ------------------------------------------------------------------------------------------------

EXACT: Records = {
    "key": np.zeros(0, np.uint64),
    "second": np.zeros(0, np.uint64),
    "preference": np.zeros(0, np.float64),
    PLACE: np.zeros(0, np.int64),
}
EXACT_BYTES = 32


@dataclass(frozen=True)
class ExactKeys:
    """Maps an index to records of the documents that are still kept, by their hash."""

    index: Path
    count: int

    def tables(self) -> Iterator[pa.RecordBatch]:
        yield from runs(self._records(), self.count, EXACT)

    def _records(self) -> Iterator[Records]:
        for each in Index(self.index).batches:
            keep = each["keep"].to_numpy() == 1
            names = {"key": "first", "second": "second", "preference": "preference", PLACE: PLACE}
            yield {name: each[column].to_numpy()[keep] for name, column in names.items()}


@dataclass(frozen=True)
class ExactGroups:
    """Reduces a range: for each copy that goes (`place`), the copy that stays (`original`)."""

    files: Sequence[Path]
    number: int
    count: int

    def tables(self) -> Iterator[pa.RecordBatch]:
        found = gather(self.files, self.number, self.count)
        train = found[PLACE] >> 62
        order = np.lexsort((found[PLACE], found["preference"], train, found["second"], found["key"]))
        key, second, places = (found[name][order] for name in ("key", "second", PLACE))
        new = np.ones(len(key), bool)
        new[1:] = (key[1:] != key[:-1]) | (second[1:] != second[:-1])
        best = places[new][np.cumsum(new) - 1] if len(places) else places
        yield batch({PLACE: places[~new], "original": best[~new]})


# --- near copies -------------------------------------------------------------------------------------------------

BANDS: Records = {"key": np.zeros(0, np.uint64), PLACE: np.zeros(0, np.int64)}
BANDS_BYTES = 16


@dataclass(frozen=True)
class BandKeys:
    """Maps an index to a record for each band of each document that is kept and no exact copy."""

    index: Path
    start: int
    originals: Path
    config: NearDuplicates
    count: int

    def tables(self) -> Iterator[pa.RecordBatch]:
        yield from runs(self._records(), self.count, BANDS)

    def _records(self) -> Iterator[Records]:
        index = Index(self.index)
        own = np.load(self.originals, mmap_mode="r")
        for first, each in zip(index.starts, index.batches, strict=False):
            numbers = np.arange(self.start + first, self.start + first + len(each))
            live = (each["keep"].to_numpy() == 1) & (own[numbers] == numbers)
            signs = matrix(each["signature"], self.config.hashes)[live]
            places = each[PLACE].to_numpy()[live]
            keys = [band_keys(signs, band, self.config.rows) for band in range(self.config.bands)]
            yield {"key": np.concatenate(keys), PLACE: np.tile(places, self.config.bands)}


def band_keys(signs: np.ndarray, band: int, rows: int) -> np.ndarray:
    """The key of each document's band, uint64."""
    keys = np.full(len(signs), band, np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
    for column in range(band * rows, (band + 1) * rows):
        keys = (keys ^ signs[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys * np.uint64(0x94D049BB133111EB)  # the upper bits, which choose the range, take from all


@dataclass(frozen=True)
class NearPairs:
    """Reduces a range of band keys to pairs of places that belong together: a forest over the range's documents."""

    files: Sequence[Path]
    indexes: Sequence[Path]
    number: int
    count: int
    config: NearDuplicates

    def tables(self) -> Iterator[pa.RecordBatch]:
        found = gather(self.files, self.number, self.count)
        order = np.argsort(found[PLACE], kind="stable")
        order = order[np.argsort(found["key"][order], kind="stable")]
        keys, places = found["key"][order], found[PLACE][order]
        same = np.zeros(len(keys) + 1, bool)
        same[1:-1] = keys[1:] == keys[:-1]
        shared = same[1:] | same[:-1]
        keys, places = keys[shared], places[shared]
        documents, members = np.unique(places, return_inverse=True)
        parent = np.arange(len(documents), dtype=np.int64)
        opened: dict[int, Index] = {}
        pairs: list[np.ndarray] = [np.zeros((2, 0), np.int64)]
        for begin in range(0, len(keys), BLOCK):
            here = slice(max(0, begin - WINDOW), begin + BLOCK)
            block, rows = np.unique(members[here], return_inverse=True)
            signs = self._signs(documents[block], opened)
            first, second = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
            n = kernels.link(
                keys[here], members[here], rows, signs, parent, begin - here.start, self.config.threshold, WINDOW,
                first, second,
            )  # fmt: skip
            pairs.append(documents[np.stack([first[:n], second[:n]])])
        joined = np.concatenate(pairs, axis=1)
        yield batch({PLACE: joined[0], "other": joined[1]})

    def _signs(self, places: np.ndarray, opened: dict[int, Index]) -> np.ndarray:
        out = np.empty((len(places), self.config.hashes), np.uint32)
        numbers = part_of(places)
        for number in np.unique(numbers):
            if number not in opened:
                opened[number] = Index(self.indexes[number])
            mine = numbers == number
            out[mine] = opened[number].signs(row_of(places[mine]))
        return out


# --- who stays ---------------------------------------------------------------------------------------------------


def number_of(places: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The running number of each place; `starts`: the first number of each part. It never leaves the build."""
    return starts[part_of(places)] + row_of(places)


def exact_originals(files: Sequence[Path], starts: np.ndarray) -> np.ndarray:
    """For each document's number, the number of the exact copy that stays: itself, where it has none. int64."""
    own = np.arange(starts[-1], dtype=np.int64)
    for path in files:
        found = gather([path], 0, 1)
        own[number_of(found[PLACE], starts)] = number_of(found["original"], starts)
    return own


def near_originals(files: Sequence[Path], starts: np.ndarray, exact: np.ndarray, indexes: Sequence[Path]) -> np.ndarray:
    """The same for all copies: clusters are what pairs connect, and the best of each stays."""
    parent = np.arange(starts[-1], dtype=np.int64)
    for path in files:
        found = gather([path], 0, 1)
        kernels.union(parent, number_of(found[PLACE], starts), number_of(found["other"], starts))
    while not np.array_equal(parent, up := parent[parent]):
        parent = up
    moved = np.flatnonzero(parent != np.arange(len(parent)))
    members = np.union1d(moved, parent[moved])
    own = np.arange(len(parent))
    if len(members):
        columns: dict[str, list[Any]] = {PLACE: [], "preference": []}
        for number, (a, b) in enumerate(itertools.pairwise(np.searchsorted(members, starts))):
            if b > a:
                index = Index(indexes[number])
                for name, values in columns.items():
                    values.append(index.column(name)[members[a:b] - starts[number]])
        places, best = (np.concatenate(values) for values in columns.values())
        roots = parent[members]
        order = np.lexsort((places, best, places >> 62, roots))
        first = np.ones(len(order), bool)
        first[1:] = roots[order][1:] != roots[order][:-1]
        own[members[order]] = members[order][first][np.cumsum(first) - 1]
    # An exact copy of a document that is itself a near copy points to the one that stays.
    return own[exact]


class DuplicatesStep:
    """Adds `duplicate_of` and `similarity` (the share of equal hashes; 1 for an exact copy), and drops the copies."""

    name = "duplicates"

    def __init__(
        self, part: int, starts: np.ndarray, exact: Path, near: Path, indexes: Sequence[Path], key: str
    ) -> None:
        self.part, self.starts, self.exact, self.near, self.indexes = part, starts, exact, near, list(indexes)
        self.identity = ["duplicates", 1, key]

    def __call__(self, table: pa.Table) -> pa.Table:
        numbers = self.starts[self.part] + row_of(table[PLACE].to_numpy())
        original = np.load(self.near, mmap_mode="r")[numbers]
        exact = np.load(self.exact, mmap_mode="r")[numbers] != numbers
        gone = np.flatnonzero(original != numbers)
        ids: list[str | None] = [None] * len(table)
        similarity: list[float | None] = [None] * len(table)
        mine = Index(self.indexes[self.part]) if len(gone) else None
        parts = np.searchsorted(self.starts, original, side="right") - 1
        for part in np.unique(parts[gone]):
            index = Index(self.indexes[part])
            chosen = gone[parts[gone] == part]
            rows = original[chosen] - self.starts[part]
            assert mine is not None
            alike = (mine.signs(numbers[chosen] - self.starts[self.part]) == index.signs(rows)).mean(axis=1)
            for row, name, share in zip(chosen, index.ids(rows), alike.astype(np.float32), strict=True):
                ids[row], similarity[row] = name, 1.0 if exact[row] else round(float(share), 4)
        table = table.append_column("duplicate_of", pa.array(ids, pa.string()))
        table = table.append_column("similarity", pa.array(similarity, pa.float32()))
        for step, which, reason in (
            ("exact_duplicates", exact, "exact copy"),
            ("near_duplicates", ~exact, "near copy"),
        ):
            table = drop(
                table, step, [reason if i is not None and w else None for i, w in zip(ids, which, strict=True)]
            )
        return table
