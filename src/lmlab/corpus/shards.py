"""Token shards: the documents of a split as memory-mapped arrays of ids, with where each document starts and what it is.

    index.json             what the shards hold, and of what vocabulary; written last: without it the folder is unfinished
    tokens-00000.bin       uint16 (uint32 above 65,536 ids), each document preceded by the end-of-text id
    starts-00000.npy       int64, one more than there are documents in the shard
    documents-00000.parquet  id and source of each document

A document is in one shard. Each file's size and CRC-32 stand in the shard's `shard-00000.json`, which is written after
it: writing that was cut off goes on after the last whole shard. A place in the tokens is one integer over all shards.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.errors import Refused, nearest
from lmlab.run import write_atomic, write_json

Document = tuple[str, str, str]
"""(id, source, text)."""
Ids = Sequence[int] | np.ndarray

SHARD_TOKENS = 1 << 27
"""A shard is closed at the first document that ends beyond so many tokens: 256 MiB in uint16."""

FORMAT = 2
_BATCH, _BATCH_CHARACTERS = 256, 1 << 20


class Joined:
    """Several arrays as one, read by a slice of step 1 or by an array of places."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts, self.dtype = parts, parts[0].dtype
        self._bounds = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        found = np.empty(places.shape, self.dtype)
        owner = np.searchsorted(self._bounds, places, side="right") - 1
        for number in np.unique(owner):
            inside = owner == number
            found[inside] = self._parts[number][places[inside] - self._bounds[number]]
        return found


class Shards:
    """The tokens of a folder written by `write_shards`."""

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        """Opens every shard; with `verify` each file's checksum is compared (a few seconds a gigabyte). Raises Refused
        where the folder is unfinished, or a file is not what was written."""
        self.folder = folder
        self.index = _read_index(folder)
        self.vocabulary: int = self.index["vocabulary"]
        width = np.dtype(self.index["dtype"])
        parts: list[np.ndarray] = []
        starts = [np.zeros(1, np.int64)]
        offset = 0
        for number, entry in enumerate(self.index["shards"]):
            _check(folder, entry, verify)
            tokens = folder / _name("tokens", number)
            parts.append(np.memmap(tokens, dtype=width, mode="r") if entry["tokens"] else np.zeros(0, width))
            starts.append(np.load(folder / _name("starts", number), allow_pickle=False)[1:] + offset)
            offset += entry["tokens"]
        self.starts: np.ndarray = np.concatenate(starts)
        """Where each document begins (at its end-of-text id), and the number of all tokens."""
        self.tokens = parts[0] if len(parts) == 1 else Joined(parts)
        """All tokens as one array: indexed by a slice or by an array of places."""
        self._documents: pa.Table | None = None

    def __len__(self) -> int:
        """Documents."""
        return len(self.starts) - 1

    def document(self, index: int) -> list[int]:
        """The ids of a document, without the end-of-text before it."""
        return self.tokens[self.starts[index] + 1 : self.starts[index + 1]].tolist()

    def where(self, place: int) -> tuple[int, int]:
        """(document, offset in it) of a place in the tokens; the end-of-text before a document has offset 0."""
        if not 0 <= place < len(self.tokens):
            raise Refused(f"{self.folder}: has no token {place:,}; it holds {len(self.tokens):,}")
        index = int(np.searchsorted(self.starts, place, side="right")) - 1
        return index, place - int(self.starts[index])

    @property
    def documents(self) -> pa.Table:
        """Columns id and source, a row a document."""
        if self._documents is None:
            files = [self.folder / _name("documents", n) for n in range(len(self.index["shards"]))]
            self._documents = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
        return self._documents

    def find(self, document_id: str) -> int:
        """The number of a document by its id. Raises Refused where there is none."""
        ids = self.documents["id"]
        place = ids.index(pa.scalar(document_id)).as_py()
        if place < 0:
            known = ids.slice(0, 10_000).to_pylist()
            raise Refused(f"{self.folder}: holds no document '{document_id}'{nearest(document_id, known)}")
        return place

    def sources(self) -> dict[str, slice]:
        """The documents of each source, in order. They stand together, because a corpus is read source by source.
        Raises Refused where they do not."""
        column = self.documents["source"].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
        coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        codes, names = coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()
        edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)] if len(codes) else []
        found: dict[str, slice] = {}
        for first, after in pairwise(edges):
            name = names[codes[first]]
            if name in found:
                raise Refused(f"{self.folder}: the documents of the source '{name}' do not stand together")
            found[name] = slice(first, after)
        return found


def write_shards(
    folder: Path,
    documents: Iterable[Document],
    encode: Callable[[list[str]], Sequence[Ids]],
    *,
    end_of_text: int,
    vocabulary: int,
    tokenizer: str = "",
    dtype: Literal["auto", "uint16", "uint32"] = "auto",
    shard_tokens: int = SHARD_TOKENS,
    threads: int = 1,
) -> Shards:
    """Encode documents in batches, `threads` at a time, into `folder`. What is finished is left as it is; what was cut off
    goes on after its last whole shard. `documents` must come in the same order each time; `tokenizer` is the fingerprint
    of the tokenizer.

    What was begun with another tokenizer or other settings is begun again. Raises Refused where an id does not fit the type,
    or the folder was finished with another tokenizer or other settings.
    """
    wide = vocabulary > 1 << 16
    if dtype == "uint16" and wide:
        raise Refused(f"{folder}: {vocabulary:,} ids do not fit uint16; expected uint32 or auto")
    kind = ("uint32" if wide else "uint16") if dtype == "auto" else dtype
    settings = {
        "format": FORMAT,
        "dtype": kind,
        "vocabulary": vocabulary,
        "end_of_text": end_of_text,
        "tokenizer": tokenizer,
        "shard_tokens": shard_tokens,
    }
    if (folder / "index.json").exists():
        _same(folder, settings, _read_index(folder))
        return Shards(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = _begun(folder, settings)
    rows = iter(documents)
    for _ in islice(rows, sum(entry["documents"] for entry in done)):
        pass
    for entry in _write(folder, _encoded(rows, encode, threads), settings, len(done)):
        done.append(entry)
    totals = {key: sum(entry[key] for entry in done) for key in ("documents", "tokens")}
    write_json(folder / "index.json", {**settings, **totals, "shards": done})
    return Shards(folder, verify=False)


def _batches(rows: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row[2])
        if len(batch) == _BATCH or size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    rows: Iterator[Document], encode: Callable[[list[str]], Sequence[Ids]], threads: int
) -> Iterator[tuple[Document, Ids]]:
    """Each document with its ids, in order; up to two batches a thread are being encoded while others are written."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[list[Document], Future[Sequence[Ids]]]] = deque()
        for batch in _batches(rows):
            waiting.append((batch, pool.submit(encode, [text for _, _, text in batch])))
            if len(waiting) > 2 * threads:
                done, ids = waiting.popleft()
                yield from zip(done, ids.result(), strict=True)
        while waiting:
            done, ids = waiting.popleft()
            yield from zip(done, ids.result(), strict=True)


def _write(
    folder: Path,
    rows: Iterator[tuple[Document, Ids]],
    settings: dict[str, Any],
    number: int,
) -> Iterator[dict[str, Any]]:
    """Write shards from `number` on, and yield the entry of each when it is whole."""
    kind, first = np.dtype(settings["dtype"]), settings["end_of_text"]
    more = True
    while more or number == 0:
        starts, written, names, places = [0], 0, [], []
        with (folder / f".{_name('tokens', number)}.tmp").open("wb") as file:
            while written < settings["shard_tokens"]:
                found = next(rows, None)
                if found is None:
                    more = False
                    break
                (name, source, _), ids = found
                row = np.empty(len(ids) + 1, np.int64)
                row[0], row[1:] = first, ids
                if row.max() >= settings["vocabulary"]:
                    raise Refused(
                        f"{folder}: '{name}' has the id {row.max()}, the vocabulary {settings['vocabulary']:,}"
                    )
                file.write(row.astype(kind).tobytes())
                written += len(row)
                starts.append(written)
                names.append(name)
                places.append(source)
        if not names and number:
            Path(file.name).unlink()
            return
        Path(file.name).replace(folder / _name("tokens", number))
        temporary = folder / f".{_name('starts', number)}.tmp.npy"
        np.save(temporary, np.asarray(starts, dtype=np.int64), allow_pickle=False)
        temporary.replace(folder / _name("starts", number))
        columns = {"id": pa.array(names, pa.string()), "source": pa.array(places, pa.string())}
        temporary = folder / f".{_name('documents', number)}.tmp"
        pq.write_table(pa.table(columns), temporary, compression="zstd")
        temporary.replace(folder / _name("documents", number))
        files = {_name(part, number) for part in _PARTS}
        for part in _PARTS:
            with (folder / _name(part, number)).open("rb") as handle:
                os.fsync(handle.fileno())
        entry = {
            "documents": len(names),
            "tokens": written,
            "files": {file: [(folder / file).stat().st_size, _checksum(folder / file)] for file in sorted(files)},
        }
        write_atomic(folder / _name("shard", number), json.dumps({**settings, **entry}))
        yield entry
        number += 1


_PARTS = {"tokens": "bin", "starts": "npy", "documents": "parquet"}


def _name(part: str, number: int) -> str:
    return f"{part}-{number:05}.{_PARTS.get(part, 'json')}"


def _checksum(path: Path) -> int:
    """CRC-32 of a file: against damage, not malice (a stage's provenance has SHA-256)."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refused(f"{folder}: holds no finished token shards: expected index.json in it") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else index
        raise Refused(f"{path}: expected token shards of format {FORMAT}, found {found!r}")
    return index


def _same(folder: Path, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise Refused(
                f"{folder}: was written with {key} {found.get(key)!r}, expected {value!r}; delete it to write it again"
            )


def _check(folder: Path, entry: dict[str, Any], verify: bool) -> None:
    """Refuse a file that is missing, cut or changed."""
    for name, (size, checksum) in entry["files"].items():
        path = folder / name
        if not path.is_file():
            raise Refused(f"{path}: is missing, and index.json names it; delete {folder} to write it again")
        if path.stat().st_size != size or (verify and _checksum(path) != checksum):
            raise Refused(f"{path}: is damaged (it is not what was written); delete {folder} to write it again")


def _begun(folder: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the shards that are whole in an unfinished folder, up to the first that is not."""
    found: list[dict[str, Any]] = []
    while (path := folder / _name("shard", len(found))).is_file():
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            _same(folder, settings, entry)
            entry = {key: value for key, value in entry.items() if key not in settings}
            _check(folder, entry, verify=True)
        except (ValueError, KeyError, Refused):
            return found
        found.append(entry)
    return found
