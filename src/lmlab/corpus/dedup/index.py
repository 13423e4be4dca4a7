"""What comparison needs of each document: a hash, a MinHash signature, and what decides which copy stays."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from lmlab.config import Config
from lmlab.corpus.arrow import buffers
from lmlab.corpus.dedup import kernels
from lmlab.corpus.dedup.shuffle import PLACE, Part
from lmlab.corpus.kernels import words
from lmlab.errors import Failed, nearest


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
            out[mine] = matrix(self.batches[b]["signature"], width)[rows[mine] - self.starts[b]]
        return out


def matrix(column: pa.FixedSizeBinaryArray, width: int) -> np.ndarray:
    """Signatures of a column as uint32 [rows, width], not copied."""
    buffer = column.buffers()[1]
    return np.frombuffer(buffer, np.uint32).reshape(-1, width)[column.offset : column.offset + len(column)]
