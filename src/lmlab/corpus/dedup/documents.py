"""Duplicate documents: exact by hash, near by MinHash and locality-sensitive hashing, clusters by union-find.

Three files a part: what comparison needs of each document (`index`), its hash as a key (`exact`), its signature's bands
as keys (`bands`). On disk that is 16 x bands + 4 x permutations + 65 bytes a document, and the id. In the memory of the
process that drives the build: 32 bytes a document, and some 100 more for each that has a copy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.arrow import buffers
from lmlab.corpus.dedup import kernels
from lmlab.corpus.dedup.shuffle import PLACE, Part, Records, batch, gather, part_of, row_of, runs
from lmlab.corpus.kernels import words
from lmlab.corpus.steps.step import drop
from lmlab.errors import Failed, nearest

WINDOW = 256
"""In a bucket of more documents than this, each is compared with so many before it: with all, the cost would grow with
the square of the bucket."""
BLOCK = 1 << 15
"""Documents whose signatures a range holds at a time."""


class NearDuplicates(Config):
    """MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3).

    A pair of Jaccard similarity s meets in a band with probability 1 - (1 - s^rows)^bands; the defaults put the middle
    of that curve near (1 / bands)^(1 / rows) = 0.71 (`lmlab corpus curve` draws it). Pairs that met are joined only if
    their signatures agree on at least `threshold` of the hashes. Of a cluster one copy stays, see `keep`.
    """

    enabled: bool = True
    shingle: int = Field(default=5, ge=1)
    """Words in a shingle (FineWeb: 5)."""
    characters: int | None = Field(default=None, ge=1)
    """Characters in a shingle of a script without spaces (Chinese, Japanese, Thai). Default: as many as `shingle`."""
    permutations: int | None = Field(default=None, ge=1)
    """Hashes in a signature. Default: bands x rows; more than that serve verification alone."""
    bands: int = Field(default=16, ge=1)
    rows: int = Field(default=8, ge=1)
    """Hashes in a band."""
    threshold: float = Field(default=0.7, ge=0, le=1)
    """Least share of equal hashes that verifies a pair; 0 joins whatever met in a band, as datatrove does."""
    keep: Literal["first", "longest", "source", "quality"] = "first"
    """Which copy of a cluster (of exact copies too) stays. Held-out copies always before training copies; then the
    longest text, the source that stands first in `source_order`, or the highest `quality_column`; then the first in
    the order of sources, files and rows."""
    source_order: list[str] = Field(default_factory=list)
    """For `keep: source`: names of sources, the best first; those not named come after them."""
    quality_column: str | None = None
    """For `keep: quality`: a column of numbers, or `struct.field` (such as `signals.stop_words`)."""
    seed: int = 0

    @property
    def hashes(self) -> int:
        return self.permutations or self.bands * self.rows

    @model_validator(mode="after")
    def _fits(self) -> NearDuplicates:
        if self.hashes < self.bands * self.rows:
            raise ValueError(
                f"permutations: {self.permutations} is less than bands x rows ({self.bands} x {self.rows} = "
                f"{self.bands * self.rows}), and each band needs hashes of its own"
            )
        if self.keep == "quality" and self.quality_column is None:
            raise ValueError("keep: quality needs quality_column, the column to go by")
        if self.keep == "source" and not self.source_order:
            raise ValueError("keep: source needs source_order, the names of sources, the best first")
        return self


def hash_family(config: NearDuplicates) -> tuple[np.ndarray, np.ndarray]:
    """(odd multipliers, increments) of the MinHash functions, uint64, drawn from the seed."""
    draw = np.random.Generator(np.random.Philox(key=config.seed))
    n = config.hashes
    multipliers = draw.integers(0, 2**64, n, dtype=np.uint64) | np.uint64(1)
    return multipliers, draw.integers(0, 2**64, n, dtype=np.uint64)


def sign(text: pa.ChunkedArray | pa.Array, config: NearDuplicates) -> np.ndarray:
    """MinHash signatures of texts, uint32 [documents, hashes]."""
    hashes, _, _, spaceless, at = words(*buffers(text))
    characters = config.characters or config.shingle
    return kernels.signatures(hashes, spaceless, at, config.shingle, characters, *hash_family(config))


def preference(table: pa.Table, config: NearDuplicates) -> np.ndarray:
    """What `keep` goes by, float64 [documents]: the least is the best."""
    if config.keep == "longest":
        return -np.diff(buffers(table["text"])[1]).astype(np.float64)
    if config.keep == "source":
        order = {name: i for i, name in enumerate(config.source_order)}
        return np.array([order.get(name, len(order)) for name in table["source"].to_pylist()], np.float64)
    if config.keep == "quality":
        name, *inside = (config.quality_column or "").split(".")
        try:
            column = table[name].combine_chunks()
            for each in inside:
                column = column.field(each)
            values = -column.to_numpy(zero_copy_only=False).astype(np.float64)
        except (KeyError, ValueError, TypeError, pa.ArrowException) as error:
            raise Failed(
                f"near_duplicates.quality_column: '{config.quality_column}' is no column of numbers ({error})"
                + nearest(name, table.column_names)
            ) from None
        return np.where(np.isnan(values), np.inf, values)
    return np.zeros(len(table))


@dataclass(frozen=True)
class IndexTask:
    """Maps a part to its index: id, place, keep, preference, two halves of a 128-bit hash, and the signature."""

    part: Part
    config: NearDuplicates
    identity = 1

    def tables(self) -> Iterator[pa.RecordBatch]:
        columns = ["id", "source", "split", "kind", "keep", "step", "reason", "text"]
        if self.config.keep == "quality":
            columns.append((self.config.quality_column or "").split(".")[0])
        for table in self.part.tables(_known(self.part, columns)):
            data, offsets = buffers(table["text"])
            view = memoryview(data.data)
            digests = [hashlib.blake2b(view[a:b], digest_size=16).digest() for a, b in itertools.pairwise(offsets)]
            halves = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
            signs = sign(table["text"], self.config) if self.config.enabled else np.zeros((len(table), 1), np.uint32)
            width = 4 * signs.shape[1]
            arrays = {
                "id": table["id"].combine_chunks().cast(pa.string()) if len(table) else pa.array([], pa.string()),
                PLACE: pa.array(table[PLACE].to_numpy()),
                "keep": pa.array(table["keep"].to_numpy(zero_copy_only=False).astype(np.uint8)),
                "preference": pa.array(preference(table, self.config)),
                "first": pa.array(np.ascontiguousarray(halves[:, 0])),
                "second": pa.array(np.ascontiguousarray(halves[:, 1])),
                "signature": pa.FixedSizeBinaryArray.from_buffers(
                    pa.binary(width), len(table), [None, pa.py_buffer(signs.tobytes())]
                ),
            }
            yield pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _known(part: Part, columns: list[str]) -> list[str]:
    """The columns that the part has; `preference` says which is missing."""
    import pyarrow.parquet as pq

    there = set(pq.read_schema(part.path).names)
    return [name for name in columns if name in there]


class Index:
    """A part's index, memory-mapped: documents by row."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self.starts = np.cumsum([0, *(len(each) for each in self.batches)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([each[name].to_numpy() for each in self.batches])

    def ids(self, rows: np.ndarray) -> list[str]:
        at = np.searchsorted(self.starts, rows, side="right") - 1
        return [self.batches[b]["id"][int(r - self.starts[b])].as_py() for b, r in zip(at, rows, strict=True)]

    def signs(self, rows: np.ndarray) -> np.ndarray:
        """uint32 [rows, hashes]."""
        at = np.searchsorted(self.starts, rows, side="right") - 1
        width = self.batches[0]["signature"].type.byte_width // 4
        out = np.empty((len(rows), width), np.uint32)
        for b in np.unique(at):
            mine = at == b
            out[mine] = _matrix(self.batches[b]["signature"], width)[rows[mine] - self.starts[b]]
        return out


def _matrix(column: pa.FixedSizeBinaryArray, width: int) -> np.ndarray:
    buffer = column.buffers()[1]
    return np.frombuffer(buffer, np.uint32).reshape(-1, width)[column.offset : column.offset + len(column)]


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
            signs = _matrix(each["signature"], self.config.hashes)[live]
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
