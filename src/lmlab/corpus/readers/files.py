"""Streaming readers of plain text, JSON Lines and Parquet, of Python's help topics, and of generated arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus.arithmetic import document
from lmlab.corpus.readers.code import Judged, judge
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, lines, open_bytes
from lmlab.corpus.source import SourceConfig
from lmlab.errors import Refused, nearest


def text(file: File, source: SourceConfig, limits: Limits) -> Result:
    """Plain text: a document a file, or pieces of about limits.cut bytes cut at blank lines."""
    piece: list[bytes] = []
    size, first, row, last = 0, 1, 0, 0

    def finish() -> Record | Reject | None:
        raw = b"".join(piece)
        if b"\0" in raw:
            return Reject(file.relative, first + raw[: raw.index(b"\0")].count(b"\n"), "binary: holds a NUL byte")
        try:
            content = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            return Reject(file.relative, first + raw[: error.start].count(b"\n"), f"not UTF-8: {error.reason}")
        return Record(file.relative, row, file.unit(row), file.kind, content) if content.strip() else None

    try:
        with open_bytes(file.fetch(), limits) as stream:
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


def jsonl(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a line: an object with the text in the source's field (C4, The Pile, most published corpora)."""
    row = last = 0
    try:
        with open_bytes(file.fetch(), limits) as stream:
            for number, line in lines(stream, limits.record):
                last = number
                if line is not None and not line.strip():
                    continue
                found = parsed(line) if line is not None else f"longer than {limits.record:,} bytes"
                item = found if isinstance(found, str) else _document(file, row, found, source)
                yield Reject(file.relative, number, item) if isinstance(item, str) else item
                row += 1
    except DAMAGED as error:
        yield Reject(file.relative, last + 1, f"cut off or damaged: {error}")


def parsed(line: bytes) -> dict[str, Any] | str:
    """A JSON object, or what is wrong with the line."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    except RecursionError:
        return "JSON nested too deep"
    except ValueError as error:
        return f"not JSON: {str(error)[:100]}"
    return value if isinstance(value, dict) else f"expected a JSON object, found {type(value).__name__}"


def field(value: Mapping[str, Any], name: str) -> Any:
    """A field by its name; `a.b` is the field b of the object a, unless a field is called so. None if it is not there."""
    if name in value or "." not in name:
        return value.get(name)
    first, rest = name.split(".", 1)
    inner = value.get(first)
    return field(inner, rest) if isinstance(inner, dict) else None


def _document(file: File, row: int, value: Mapping[str, Any], source: SourceConfig) -> Record | Passed | str:
    """One row as a document, or what is wrong with it."""
    name = source.text_field
    if name not in value and field(value, name) is None:
        return f"no field '{name}' (fields: {', '.join(sorted(map(str, value))[:8])[:200]})"
    content = field(value, name)
    if isinstance(problem := as_text(content, name), str):
        return problem
    origin = None
    if source.source_field:
        origin = _source_name(field(value, source.source_field))
        if origin is None:
            return f"field '{source.source_field}' holds no name of at most 100 characters"
    meta = {each: plain(found) for each in source.meta_fields if (found := field(value, each)) is not None}
    judged = Judged(problem[0], file.kind)
    if source.code.path_field:
        path = field(value, source.code.path_field)
        if not isinstance(path, str):
            return f"field '{source.code.path_field}' holds {type(path).__name__}, expected a file's name"
        licence = field(value, source.code.license_field) if source.code.license_field else None
        judged = judge(path, problem[0], source, licence)
        meta = {"path": plain(path), **judged.meta, **meta}
    if judged.passed:
        return Passed(file.relative, judged.passed)
    return Record(
        file.relative, row, file.unit(row), judged.kind, judged.text, judged.drop, meta or None, origin
    )  # fmt: skip


def plain(value: Any) -> Any:
    """A field's value as JSON can hold it and UTF-8 can write it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if isinstance(value, str) else json.loads(text)


def _source_name(value: Any) -> str | None:
    if not isinstance(value, str) or not 0 < len(value) <= 100:
        return None
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._") else "-" for c in value)
    while "--" in name:
        name = name.replace("--", "-")
    return name.strip("-.") or None


def as_text(value: object, name: str) -> tuple[str] | str:
    """(the text,), or why it is none."""
    if not isinstance(value, str):
        return f"field '{name}' holds {type(value).__name__}, expected text"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return f"field '{name}' holds a lone surrogate: no valid Unicode"
    return (value,)


def _columns(names: list[str], file: File, source: SourceConfig) -> list[str]:
    """The columns that the source's settings name. Raises Refused where one is not there."""
    code = source.code
    settings = {
        "text_field": source.text_field,
        "source_field": source.source_field,
        "code.path_field": code.path_field,
        "code.license_field": code.license_field,
        **{f"meta_fields[{i}]": each for i, each in enumerate(source.meta_fields)},
    }
    wanted = {}
    for setting, name in settings.items():
        column = name if name in names else name.split(".", 1)[0]
        if name and column not in names:
            raise Refused(
                f"source '{source.name}': {file.relative} has no column '{name}'{nearest(name, names)}; set {setting}"
            )
        if name:
            wanted[column] = None
    return list(wanted)


def parquet(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a row of the source's text column."""
    row = 0
    try:
        with pq.ParquetFile(file.fetch()) as table:
            columns = _columns(table.schema_arrow.names, file, source)
            for batch in table.iter_batches(batch_size=256, columns=columns):
                # Cell by cell: one that is no UTF-8 must not cost its neighbours.
                for index in range(len(batch)):
                    try:
                        value = {name: batch.column(name)[index].as_py() for name in columns}
                    except UnicodeDecodeError as error:
                        yield Reject(file.relative, row, f"not UTF-8: {error.reason} at byte {error.start}")
                        row += 1
                        continue
                    found = field(value, source.text_field)
                    if isinstance(found, str) and len(found) > limits.record:
                        item: Record | Passed | str = f"longer than {limits.record:,} characters"
                    else:
                        item = _document(file, row, value, source)
                    yield Reject(file.relative, row, item) if isinstance(item, str) else item
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield Reject(file.relative, row, f"damaged: {str(error)[:200]}")


def topics(file: File, source: SourceConfig, limits: Limits) -> Result:
    """The help topics, a document each, named by topic."""
    from pydoc_data.topics import topics as found

    for name in sorted(found):
        yield Record(name, 0, name, file.kind, found[name])


def arithmetic(file: File, source: SourceConfig, limits: Limits) -> Result:
    """Generated problems, a document each, named by its number."""
    for number in range(source.arithmetic.documents):
        yield Record(file.relative, number, file.unit(number), file.kind, document(source.arithmetic, number))
