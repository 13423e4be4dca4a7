"""What readers yield, and streams of lines that no input can make large."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard


@dataclass(frozen=True)
class Record:
    """One document as read. `unit` is what the held-out split hashes: the file, or the row where rows are split."""

    path: str
    row: int
    unit: str
    kind: str
    text: str


@dataclass(frozen=True)
class Reject:
    """A record that could not be read: in which file (relative to the source), at which line or row, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """Bytes: the longest record that is read, and about where long plain text is cut."""

    record: int = 16 << 20
    cut: int = 1 << 16


DAMAGED = (EOFError, OSError, zlib.error, zstandard.ZstdError)
"""What reading a damaged or cut-off compressed file raises."""


class _ZstandardStream(io.RawIOBase):
    """Decompressed bytes of one or more frames; a file that ends inside a frame raises EOFError.

    Input is fed in small pieces because a few bytes may stand for 128 kB each: that bounds what one piece becomes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._pending = file, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not len(self._pending):
            piece = self._file.read(2048)
            if not piece:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstandard frame")
                return 0
            out: list[bytes] = []
            while piece:
                if self._frame is None:
                    self._frame = zstandard.ZstdDecompressor().decompressobj()
                out.append(self._frame.decompress(piece))
                piece = b""
                if self._frame.eof:
                    piece, self._frame = self._frame.unused_data, None
            self._pending = memoryview(b"".join(out))
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> IO[bytes]:
    """A buffered byte stream of a file, decompressed by its ending (.gz, .zst)."""
    if path.suffix == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), 1 << 16)  # type: ignore[arg-type]
    if path.suffix in (".zst", ".zstd"):
        return io.BufferedReader(_ZstandardStream(path.open("rb")), 1 << 16)
    return path.open("rb")


def lines(stream: IO[bytes], longest: int) -> Iterator[tuple[int, bytes | None]]:
    """(line number from 1, the line with its end), or None in place of a line longer than `longest` bytes."""
    number = 0
    while line := stream.readline(longest + 1):
        number += 1
        if len(line) > longest:
            while line and not line.endswith(b"\n"):
                line = stream.readline(longest)
            yield number, None
        else:
            yield number, line
