"""Streaming readers, one a format. Each yields a `Record` for each document and a `Reject` for what is broken."""

from __future__ import annotations

import io
import json
import tokenize
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus.config import SourceConfig
from lmlab.corpus.extract import code_without_docstrings, docstrings
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Record, Reject, lines, open_bytes
from lmlab.errors import Refused, nearest

Result = Iterator[Record | Reject]


def read(file: File, source: SourceConfig, limits: Limits) -> Result:
    """Stream one file. Raises Refused only where the settings are wrong for the file (a column that is not there)."""
    if file.reader == "topics":
        return _topics(file)
    if file.reader == "jsonl":
        return _jsonl(file, source, limits)
    if file.reader == "parquet":
        return _parquet(file, source, limits)
    if file.reader == "code":
        return _code(file, source, limits)
    return _text(file, limits)


def _unit(file: File, row: int) -> str:
    return f"{file.relative}#{row}" if file.by_row else file.relative


def _text(file: File, limits: Limits) -> Result:
    """Plain text: a document a file, or pieces of about limits.cut bytes cut at blank lines."""
    piece: list[bytes] = []
    size, first, row, last = 0, 1, 0, 0

    def finish() -> Record | Reject | None:
        raw = b"".join(piece)
        if b"\0" in raw:
            return Reject(file.relative, first + raw[: raw.index(b"\0")].count(b"\n"), "binary: holds a NUL byte")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            return Reject(file.relative, first + raw[: error.start].count(b"\n"), f"not UTF-8: {error.reason}")
        return Record(file.relative, row, _unit(file, row), file.kind, text) if text.strip() else None

    try:
        with open_bytes(file.fetch()) as stream:
            for number, line in lines(stream, limits.record):
                last = number
                if line is None:
                    yield Reject(file.relative, number, f"a line longer than {limits.record:,} bytes")
                    continue
                blank = not line.strip()
                # Without a blank line for long, any line end will do: memory stays bounded.
                if piece and size >= limits.cut and (blank or size >= 4 * limits.cut):
                    if (done := finish()) is not None:
                        yield done
                    piece, size, first, row = [], 0, number, row + 1
                piece.append(line)
                size += len(line)
    except DAMAGED as error:
        yield Reject(file.relative, last + 1, f"cut off or damaged: {error}")
        return  # the piece that was being read has no end: it is part of what was lost
    if (done := finish()) is not None:
        yield done


def _code(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a file; Python files are decoded as they declare and extracted from as the source says."""
    try:
        with open_bytes(file.fetch()) as stream:
            raw = stream.read(limits.record + 1)
    except DAMAGED as error:
        yield Reject(file.relative, 1, f"cut off or damaged: {error}")
        return
    if len(raw) > limits.record:
        yield Reject(file.relative, 1, f"longer than {limits.record:,} bytes")
        return
    python = file.relative.removesuffix(".gz").removesuffix(".zst").endswith((".py", ".pyi"))
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if python else "utf-8"
        text = raw.decode(encoding)
        if "\0" in text:
            yield Reject(file.relative, 1, "binary: holds a NUL byte")
            return
        if python and source.extract != "whole":
            module = file.relative.rsplit(".py", 1)[0].removesuffix("/__init__").replace("/", ".")
            text = code_without_docstrings(text) if source.extract == "code" else docstrings(text, module)
    except UnicodeDecodeError as error:
        yield Reject(file.relative, raw[: error.start].count(b"\n") + 1, f"not {error.encoding}: {error.reason}")
        return
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        yield Reject(file.relative, line, f"not Python {type(error).__name__}: {getattr(error, 'msg', error)}")
        return
    yield Record(file.relative, 0, _unit(file, 0), file.kind, text)


def _jsonl(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a line: an object with the text in the source's field."""
    row = last = 0
    try:
        with open_bytes(file.fetch()) as stream:
            for number, line in lines(stream, limits.record):
                last = number
                if line is not None and not line.strip():
                    continue
                found = _field(line, source.text_field) if line is not None else f"longer than {limits.record:,} bytes"
                if isinstance(found, str):
                    yield Reject(file.relative, number, found)
                else:
                    yield Record(file.relative, row, _unit(file, row), file.kind, found[0])
                row += 1
    except DAMAGED as error:
        yield Reject(file.relative, last + 1, f"cut off or damaged: {error}")


def _field(line: bytes, name: str) -> tuple[str] | str:
    """(the text,), or what is wrong with the line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    except RecursionError:
        return "JSON nested too deep"
    except ValueError as error:
        return f"not JSON: {str(error)[:100]}"
    if not isinstance(value, dict):
        return f"expected a JSON object, found {type(value).__name__}"
    if name not in value:
        return f"no field '{name}' (fields: {', '.join(sorted(map(str, value))[:8])[:200]})"
    return _as_text(value[name], name)


def _as_text(value: object, name: str) -> tuple[str] | str:
    if not isinstance(value, str):
        return f"field '{name}' holds {type(value).__name__}, expected text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return f"field '{name}' holds a lone surrogate: no valid Unicode"
    return (value,)


def _parquet(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a row of the source's text column."""
    row = 0
    try:
        with pq.ParquetFile(file.fetch()) as table:
            names = table.schema_arrow.names
            if source.text_field not in names:
                raise Refused(
                    f"source '{source.name}': {file.relative} has no column '{source.text_field}'"
                    f"{nearest(source.text_field, names)}; set text_field"
                )
            for batch in table.iter_batches(batch_size=256, columns=[source.text_field]):
                for value in batch.column(0):
                    try:
                        found = _as_text(value.as_py(), source.text_field)
                    except UnicodeDecodeError as error:
                        found = f"not UTF-8: {error.reason} at byte {error.start}"
                    if not isinstance(found, str) and len(found[0]) > limits.record:
                        found = f"longer than {limits.record:,} characters"
                    if isinstance(found, str):
                        yield Reject(file.relative, row, found)
                    else:
                        yield Record(file.relative, row, _unit(file, row), file.kind, found[0])
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield Reject(file.relative, row, f"damaged: {str(error)[:200]}")


def _topics(file: File) -> Result:
    """The help topics, a document each, named by topic."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Record(name, 0, name, file.kind, topics[name])
