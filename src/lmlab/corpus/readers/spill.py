"""Sorting more than fits in memory: runs that are sorted in memory go to disk and are merged (Knuth volume 3, 5.4)."""

from __future__ import annotations

import heapq
import io
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

RUN_BYTES = 64 << 20
"""Bytes of keys and values that one run holds in memory."""
FAN_IN = 64
"""Runs that are merged at once: each has an open file and a buffer."""
_HEAD = struct.Struct("<II")
_EACH = 100  # about what Python's objects of a pair weigh


class Sorter:
    """Pairs of bytes in, the same pairs out by key (equal keys in the order they came). The files are removed when the
    block is left. Memory: one run, or FAN_IN buffers. Disk: about what the pairs weigh compressed, twice while merging.
    """

    def __init__(self, scratch: Path | None, run_bytes: int = RUN_BYTES) -> None:
        self._scratch, self._run_bytes = scratch, run_bytes
        self._pairs: list[tuple[bytes, bytes]] = []
        self._size = 0
        self._runs: list[Path] = []
        self._made = 0

    def __enter__(self) -> Sorter:
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(prefix="sort-", dir=self._scratch))
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, key: bytes, value: bytes) -> None:
        self._pairs.append((key, value))
        self._size += len(key) + len(value) + _EACH
        if self._size >= self._run_bytes:
            self._runs.append(self._write(iter(sorted(self._pairs, key=_key))))
            self._pairs, self._size = [], 0

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        self._pairs.sort(key=_key)
        while len(self._runs) > FAN_IN:  # neighbours together, so that equal keys keep their order
            groups = [self._runs[i : i + FAN_IN] for i in range(0, len(self._runs), FAN_IN)]
            self._runs = []
            for group in groups:
                self._runs.append(self._write(heapq.merge(*map(_read, group), key=_key)))
                for path in group:
                    path.unlink()
        return heapq.merge(*map(_read, self._runs), iter(self._pairs), key=_key)

    def _write(self, pairs: Iterator[tuple[bytes, bytes]]) -> Path:
        path = self._folder / f"run-{self._made:06d}.zst"
        self._made += 1
        with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as out:
            for key, value in pairs:
                out.write(_HEAD.pack(len(key), len(value)) + key + value)
        return path


def _key(pair: tuple[bytes, bytes]) -> bytes:
    return pair[0]


def _read(path: Path) -> Iterator[tuple[bytes, bytes]]:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        buffered: IO[bytes] = io.BufferedReader(stream, 1 << 18)  # type: ignore[arg-type]
        while head := buffered.read(_HEAD.size):
            key, value = _HEAD.unpack(head)
            yield buffered.read(key), buffered.read(value)
