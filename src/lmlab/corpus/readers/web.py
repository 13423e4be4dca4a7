"""Crawls: WARC (ISO 28500) with main-text extraction, and WET, whose text Common Crawl has extracted.

The framing is read here, line by line, and not by a WARC library: after a broken record reading goes on at the next one.
(fastwarc 2.0.1 stops there, and a test holds this reader to it on whole files.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from lmlab.corpus.readers import html
from lmlab.corpus.readers.links import Wanted
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, open_bytes
from lmlab.corpus.source import SourceConfig

_HEADER = 1 << 16
_PIECE = 1 << 16


@dataclass(frozen=True)
class WarcRecord:
    """Header fields (names in lower case) and the content; None in its place where it is longer than the limit."""

    fields: dict[str, str]
    content: bytes | None
    number: int


def warc_records(stream: IO[bytes], kind: str, limits: Limits) -> Iterator[WarcRecord | str]:
    """The records of one WARC-Type, or in place of a broken one what is wrong with it. Raises one of DAMAGED where the
    stream ends early. Content of other types is passed over unread."""
    number = 0
    line = stream.readline(_HEADER)
    while line:
        if not line.strip():
            line = stream.readline(_HEADER)
            continue
        number += 1
        if not line.startswith(b"WARC/"):
            yield "expected a WARC record, found other bytes"
            while line and not line.startswith(b"WARC/"):
                line = stream.readline(_HEADER)
            continue
        fields = _fields(stream)
        length = fields.get("content-length", "") if fields is not None else ""
        if fields is None or not length.isascii() or not length.isdigit() or len(length) > 15:
            yield (
                f"a WARC header without a length ('{length[:40]}')" if fields is not None else "a WARC header too long"
            )
            line = b"\n"
            continue
        size = int(length)
        wanted = fields.get("warc-type") == kind and size <= limits.record
        content = _exactly(stream, size, keep=wanted)
        if fields.get("warc-type") == kind:
            yield WarcRecord(fields, content, number)
        line = stream.readline(_HEADER)


def _fields(stream: IO[bytes]) -> dict[str, str] | None:
    """Header lines to the empty one; None if there is no end to them."""
    fields: dict[str, str] = {}
    size = 0
    while (line := stream.readline(_HEADER)).strip():
        size += len(line)
        if size > _HEADER:
            return None
        name, _, value = line.decode("utf-8", "replace").partition(":")
        fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _exactly(stream: IO[bytes], size: int, *, keep: bool) -> bytes | None:
    if keep:
        content = stream.read(size)
        if len(content) < size:
            raise EOFError("the file ends inside a record")
        return content
    while size > 0:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise EOFError("the file ends inside a record")
        size -= len(piece)
    return None


def http(content: bytes, limits: Limits) -> tuple[int, dict[str, str], bytes] | str:
    """(status, header fields, body) of an HTTP response, the body with its encodings undone, or what is wrong."""
    head, separator, body = content.partition(b"\r\n\r\n")
    if not separator:
        head, separator, body = content.partition(b"\n\n")
    lines = head.decode("latin-1").splitlines()
    status = lines[0].split(" ") if lines else []
    if len(status) < 2 or not status[0].startswith("HTTP/") or not status[1].isdigit():
        return "no HTTP response"
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _unchunked(body)
    encoding = fields.get("content-encoding", "").lower()
    # Common Crawl stores bodies decoded, with the field as it was sent: the bytes say what they are.
    if encoding in ("gzip", "x-gzip") and body[:2] == b"\x1f\x8b":
        return _inflated(int(status[1]), fields, body, 31, limits)
    if encoding == "deflate" and body[:1] == b"\x78":
        return _inflated(int(status[1]), fields, body, 15, limits)
    return int(status[1]), fields, body


def _inflated(
    status: int, fields: dict[str, str], body: bytes, bits: int, limits: Limits
) -> tuple[int, dict[str, str], bytes] | str:
    try:
        out = zlib.decompressobj(bits).decompress(body, limits.record + 1)
    except zlib.error as error:
        return f"its body is damaged: {error}"
    return (
        (status, fields, out) if len(out) <= limits.record else f"its body becomes longer than {limits.record:,} bytes"
    )


def _unchunked(body: bytes) -> bytes:
    """A chunked body joined; as it is where it is not chunked (any more)."""
    out, place = [], 0
    while True:
        end = body.find(b"\r\n", place, place + 100)
        size = body[place:end].split(b";")[0].strip() if end >= 0 else b""
        if not size or len(size) > 8 or not all(c in b"0123456789abcdefABCDEF" for c in size):
            return b"".join(out) if out else body
        if (n := int(size, 16)) == 0:
            return b"".join(out)
        out.append(body[end + 2 : end + 2 + n])
        place = end + 4 + n


_PAGES = ("text/html", "application/xhtml+xml", "")


def warc(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a page: what was answered with status 200, is HTML, and has main text."""
    extract = html.main_text(source.web.extractor)

    def page(record: WarcRecord) -> tuple[str] | Reject | Passed:
        found = http(record.content or b"", limits)
        if isinstance(found, str):
            return Reject(file.relative, record.number, found)
        status, fields, body = found
        if status != 200:
            return Passed(file.relative, f"HTTP status {status}")
        media, _, rest = fields.get("content-type", "").partition(";")
        if media.strip().lower() not in _PAGES:
            return Passed(file.relative, "not HTML")
        _, _, charset = rest.lower().partition("charset=")
        try:
            text = extract(html.decoded(body, charset.split(";")[0].strip(" \"'") or None))
        except html.Unreadable as error:
            return Reject(file.relative, record.number, f"HTML that {source.web.extractor} cannot read: {error}")
        return (text,)

    yield from _pages(file, source, limits, "response", page)


def wet(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a conversion record: its content is UTF-8 text."""

    def page(record: WarcRecord) -> tuple[str] | Reject | Passed:
        try:
            return ((record.content or b"").decode("utf-8"),)
        except UnicodeDecodeError as error:
            return Reject(file.relative, record.number, f"not UTF-8: {error.reason} at byte {error.start}")

    yield from _pages(file, source, limits, "conversion", page)


def _pages(file: File, source: SourceConfig, limits: Limits, kind: str, page) -> Result:
    wanted = Wanted.of(source, limits)
    row = number = 0
    try:
        with open_bytes(file.fetch(), limits) as stream:
            for record in warc_records(stream, kind, limits):
                if isinstance(record, str):
                    yield Reject(file.relative, number + 1, record)
                    continue
                number = record.number
                address = record.fields.get("warc-target-uri", "").strip("<>")
                if wanted is not None and address not in wanted:
                    yield Passed(file.relative, "not among the wanted addresses")
                    continue
                if record.content is None:
                    yield Reject(file.relative, number, f"longer than {limits.record:,} bytes")
                    continue
                found = page(record)
                if isinstance(found, tuple) and not found[0].strip():
                    found = Passed(file.relative, "no main text")
                if isinstance(found, tuple):
                    meta = {"url": address, "date": record.fields.get("warc-date", "")}
                    text = found[0].encode("utf-8", "replace").decode("utf-8")
                    yield Record(file.relative, row, file.unit(row), file.kind, text, meta=meta)
                    row += 1
                else:
                    yield found
    except DAMAGED as error:
        yield Reject(file.relative, number + 1, f"cut off or damaged: {error}")
