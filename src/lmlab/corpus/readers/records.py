"""What readers yield, and streams of lines that no input can make large."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard


@dataclass(frozen=True)
class Record:
    """One document as read. `unit` is what the held-out split hashes: the file, or the row where rows are split.

    `drop` says why the source's own settings set it aside (a licence, generated code): it is kept as a dropped document.
    `meta` is what the source says of it (title, address, licence, score); `source` names it where its source has parts.
    """

    path: str
    row: int
    unit: str
    kind: str
    text: str
    drop: str | None = None
    meta: Mapping[str, Any] | None = None
    source: str | None = None


@dataclass(frozen=True)
class Reject:
    """A record that could not be read: in which file (relative to the source), at which line or row, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Passed:
    """Something that is whole but no document of this source (a redirect, an image, a page of another address)."""

    file: str
    reason: str


Result = Iterator[Record | Reject | Passed]


@dataclass(frozen=True)
class Limits:
    """Bytes: the longest record that is read, about where long plain text is cut, the memory that a compressed stream
    may ask for (zstandard's window, xz's dictionary), and what any file may become when it is decompressed (`allowance`).
    Past that, a compressed file may become `expansion` times its size. `scratch`: where sorted runs are put (default: the
    system's place).
    """

    record: int = 16 << 20
    cut: int = 1 << 16
    expansion: float = 200
    window: int = 128 << 20
    allowance: int = 128 << 20
    scratch: Path | None = None

    def expanded(self, size: int) -> int:
        """The bytes that a compressed file of `size` bytes may become."""
        return self.allowance + int(self.expansion * size)


DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What reading a damaged or cut-off compressed file raises."""


class _ZstandardStream(io.RawIOBase):
    """Decompressed bytes of one or more frames; a file that ends inside a frame raises EOFError.

    Input is fed in pieces of 512 bytes, because 4 bytes may stand for 128 KiB: so a piece becomes 16 MiB at most.
    """

    def __init__(self, file: IO[bytes], window: int) -> None:
        self._file, self._pending, self._window = file, memoryview(b""), window
        self._frame: Any = None
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not len(self._pending):
            piece = self._input or self._file.read(512)
            self._input = b""
            if not piece:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstandard frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=self._window).decompressobj()
            try:
                self._pending = memoryview(self._frame.decompress(piece))
            except zstandard.ZstdError as error:
                hint = "; it needs more memory than max_window_bytes allows" if "memory" in str(error) else ""
                raise OSError(f"{error}{hint}") from None
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _BlockStream(io.RawIOBase):
    """Decompressed bytes of one or more bzip2 or xz streams, in pieces of at most the buffer's size."""

    def __init__(self, file: IO[bytes], make: Callable[[], Any]) -> None:
        self._file, self._make = file, make
        self._stream: Any = None
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            if self._stream is None:
                self._input = self._input.lstrip(b"\0") or self._file.read(1 << 16).lstrip(b"\0")  # xz may be padded
                if not self._input:
                    return 0
                self._stream = self._make()
            elif self._stream.needs_input and not self._input and not (file := self._file.read(1 << 16)):
                raise EOFError("the file ends inside a compressed stream")
            elif self._stream.needs_input and not self._input:
                self._input = file
            piece, self._input = self._input, b""
            try:
                out = self._stream.decompress(piece, len(buffer))
            except lzma.LZMAError as error:
                hint = "; it needs more memory than max_window_bytes allows" if "emory" in str(error) else ""
                raise OSError(f"{error}{hint}") from None
            if self._stream.eof:
                self._input, self._stream = self._stream.unused_data, None
            if out:
                buffer[: len(out)] = out
                return len(out)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Guard(io.RawIOBase):
    """A stream that may not become larger than `most` bytes: past that, reading it raises OSError."""

    def __init__(self, raw: Any, size: int, most: int) -> None:
        self._raw, self._size, self._most, self._total = raw, size, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        n = self._raw.readinto(buffer)
        self._total += n
        if self._total > self._most:
            raise OSError(
                f"{self._size:,} compressed bytes become more than {self._most:,}: a decompression bomb? "
                "(max_expansion says how many times its size a file may become)"
            )
        return n

    def close(self) -> None:
        self._raw.close()
        super().close()


def _xz(window: int) -> Any:
    return lzma.LZMADecompressor(memlimit=window)


_OPENERS: dict[str, Callable[[IO[bytes], Limits], Any]] = {
    ".gz": lambda file, limits: _GzipStream(file),
    ".tgz": lambda file, limits: _GzipStream(file),
    ".zst": lambda file, limits: _ZstandardStream(file, limits.window),
    ".zstd": lambda file, limits: _ZstandardStream(file, limits.window),
    ".bz2": lambda file, limits: _BlockStream(file, bz2.BZ2Decompressor),
    ".xz": lambda file, limits: _BlockStream(file, lambda: _xz(limits.window)),
}


class _GzipStream(gzip.GzipFile):
    """Closes the file below it too."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._below = file

    def close(self) -> None:
        super().close()
        self._below.close()


def open_bytes(path: Path, limits: Limits | None = None) -> IO[bytes]:
    """A buffered byte stream of a file, decompressed by its ending (.gz, .zst, .bz2, .xz). A file that ends early, is
    damaged, or becomes more than `limits` allow raises one of DAMAGED, after what could be read before that place."""
    limits = limits or Limits()
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return path.open("rb", buffering=1 << 18)
    size = path.stat().st_size
    return io.BufferedReader(_Guard(opener(path.open("rb"), limits), size, limits.expanded(size)), 1 << 16)


def unpacked(data: bytes, limits: Limits) -> bytes:
    """The content of gzip data, at most limits.record bytes of it. Raises one of DAMAGED."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        out = file.read(limits.record + 1)
    if len(out) > limits.record:
        raise OSError(f"becomes longer than {limits.record:,} bytes")
    return out


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
