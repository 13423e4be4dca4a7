"""The shuffle under every global operation: parts, places, ranges of keys.

A part is a shard as the operations before have left it: a file and the steps to be applied on reading. A place is the
name of a document: bit 62 says that it is a training document, then the part's number and the row in it, so that places
in order are the order in which a copy is preferred: held-out before training, then the order of the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus import engine
from lmlab.corpus.steps.step import Step
from lmlab.run import digest

TRAIN, ROWS = 62, 32
RANGE_BYTES = 64 << 20
"""Records that one range holds, about; reducing it takes some three times as much."""
RUN_BYTES = 64 << 20
"""Records that a mapping task holds before it writes them as a sorted run."""
CORES, SMALL_BYTES = 16, 1 << 20
"""A small corpus is cut into ranges of SMALL_BYTES, up to CORES of them, so that cores have something to do."""
PLACE = "place"

Records = Mapping[str, np.ndarray]
"""Columns of equal length; `key` (uint64) says which range a record belongs to."""


@dataclass(frozen=True)
class Part:
    """One shard: `path`, what its content depends on, and the steps that global operations have added."""

    number: int
    path: Path
    identity: str
    steps: tuple[Step, ...] = ()

    def then(self, step: Step) -> Part:
        return replace(self, steps=(*self.steps, step))

    @property
    def key(self) -> str:
        return digest([self.identity, [step.identity for step in self.steps]])

    @property
    def rows(self) -> int:
        return pq.read_metadata(self.path).num_rows

    @property
    def bytes(self) -> int:
        """Of all columns, uncompressed."""
        metadata = pq.read_metadata(self.path)
        return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Its documents, a row group at a time, each with its place, and with the steps applied."""
        row = 0
        for table in engine.read_shard(self.path, columns):
            train = np.array(table["split"].to_pylist(), dtype=object) == "train"
            places = (train.astype(np.int64) << TRAIN) | (self.number << ROWS) | np.arange(row, row + len(table))
            row += len(table)
            yield engine.apply(self.steps, table.append_column(PLACE, pa.array(places, pa.int64())))

    def final(self) -> Iterator[pa.Table]:
        """All columns, as they are written in the end."""
        for table in self.tables():
            yield table.drop_columns([PLACE])


def part_of(places: np.ndarray) -> np.ndarray:
    """The part's number of each place."""
    return (places >> ROWS) & ((1 << (TRAIN - ROWS)) - 1)


def row_of(places: np.ndarray) -> np.ndarray:
    """The row in its part of each place."""
    return places & ((1 << ROWS) - 1)


def ranges(records: int, record_bytes: int) -> int:
    """Into how many ranges of keys so many records are cut."""
    size = records * record_bytes
    return max(1, min(CORES, math.ceil(size / SMALL_BYTES)), math.ceil(size / RANGE_BYTES))


def batch(columns: Records) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values) for values in columns.values()], names=list(columns))


def runs(stream: Iterable[Records], count: int, empty: Records) -> Iterator[pa.RecordBatch]:
    """Records as sorted runs, each run as `count` record batches, one a range. `empty` has the columns and no rows."""
    held: list[Records] = []
    size = 0
    wrote = False
    for records in stream:
        held.append(records)
        size += sum(values.nbytes for values in records.values())
        if size >= RUN_BYTES:
            yield from _run(held, count, empty)
            held, size, wrote = [], 0, True
    if held or not wrote:
        yield from _run(held, count, empty)


def _run(held: list[Records], count: int, empty: Records) -> Iterator[pa.RecordBatch]:
    columns = {name: np.concatenate([empty[name], *(each[name] for each in held)]) for name in empty}
    order = np.argsort(columns["key"], kind="stable")
    # Range r holds the keys k with (k >> 32) * count >> 32 == r.
    bounds = [((r << 32) + count - 1) // count << 32 for r in range(1, count)]
    cuts = np.searchsorted(columns["key"][order], np.array(bounds, np.uint64))
    for rows in np.split(order, cuts):
        yield batch({name: values[rows] for name, values in columns.items()})


def gather(files: Sequence[Path], number: int, count: int) -> dict[str, np.ndarray]:
    """All records of range `number` of `count`, out of every file, in the order of files."""
    found: dict[str, list[np.ndarray]] = {}
    for path in files:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            for i in range(number, reader.num_record_batches, count):
                records = reader.get_batch(i)
                for name in records.schema.names:
                    found.setdefault(name, []).append(records[name].to_numpy().copy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


@dataclass
class Answers:
    """What the ranges found for one part: records of its documents, `place` first; read when first asked for."""

    number: int
    files: Sequence[Path]
    _found: dict[str, np.ndarray] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"number": self.number, "files": list(self.files), "_found": None}

    def of(self, places: np.ndarray) -> dict[str, np.ndarray]:
        """The records of some documents of the part (consecutive rows), with `row`, the index into `places`; by row."""
        if self._found is None:
            self._found = self._read()
        found = self._found
        rows = row_of(found[PLACE])
        first = int(row_of(places[:1])[0]) if len(places) else 0
        here = slice(*np.searchsorted(rows, [first, first + len(places)]))
        return {**{name: values[here] for name, values in found.items()}, "row": rows[here] - first}

    def _read(self) -> dict[str, np.ndarray]:
        held: dict[str, list[np.ndarray]] = {}
        for path in self.files:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                for i in range(reader.num_record_batches):
                    records = reader.get_batch(i)
                    places = records[PLACE].to_numpy()
                    # A part's records stand together twice: held-out and training documents are apart.
                    for train in (0, 1):
                        low = (train << TRAIN) | (self.number << ROWS)
                        a, b = np.searchsorted(places, [low, low + (1 << ROWS)])
                        for name in records.schema.names:
                            held.setdefault(name, []).append(records[name].to_numpy()[a:b].copy())
        joined = {name: np.concatenate(pieces) for name, pieces in held.items()}
        order = np.argsort(row_of(joined[PLACE]), kind="stable")
        return {name: values[order] for name, values in joined.items()}
