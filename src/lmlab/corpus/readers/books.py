"""Books: plain text with Project Gutenberg's header and footer taken off, EPUB, and zip files of plain text.

A book is one document, however long (up to max_record_bytes). Nothing is unpacked to disk: names inside an archive are only
looked up, never used as paths.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
import zlib
from typing import Any
from urllib.parse import unquote

from lmlab.corpus.readers import html, xml
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, open_bytes
from lmlab.corpus.source import SourceConfig

_START = re.compile(
    r"^[ \t]*\*{3}[ \t]*START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*$|^\*END[*\s]{0,3}THE SMALL PRINT[^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*\*{3}[ \t]*END OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*$"
    r"|^[ \t]*End of (?:the )?Project Gutenberg(?:'s|’s)? [^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)
_CREDITS = re.compile(
    r"\s*(?:\[?(?:Produced|E-?text prepared|Transcribed|This e-?text was (?:prepared|produced)) by)(?:[^\n]+\n)+",
    re.IGNORECASE,
)
_CHARSET = re.compile(rb"^Character set encoding:\s*([\w-]+)", re.MULTILINE | re.IGNORECASE)
_FIELD = re.compile(r"^(Title|Author|Language):\s*(.+?)\s*$", re.MULTILINE)
_HEADER = 20_000
"""Characters in which Project Gutenberg's header ends and before whose last the footer does not begin."""


def gutenberg(text: str) -> tuple[str, dict[str, str]]:
    """(a book without Project Gutenberg's header, credits, footer and licence; title, author and language where the
    header names them). Any other text comes back as it is."""
    text = text.replace("\r\n", "\n")
    start = None
    for start in _START.finditer(text, 0, _HEADER):  # noqa: B007 (the last one: older files have the small print too)
        pass
    if start is None and "Project Gutenberg" not in text[:_HEADER]:
        return text, {}
    meta = {name.lower(): value for name, value in _FIELD.findall(text[: start.start() if start else _HEADER])}
    begin = start.end() if start else 0
    end = _END.search(text, max(begin, 0))
    body = text[begin : end.start() if end else len(text)]
    if start is not None and (credit := _CREDITS.match(body)):
        body = body[credit.end() :]
    return body.strip("\n"), meta


def decoded(raw: bytes) -> str | None:
    """UTF-8, or what the book's header says that it is; None if it is neither."""
    found = _CHARSET.search(raw[:_HEADER])
    for name in ("utf-8-sig", found[1].decode() if found else None):
        try:
            if name is not None:
                return raw.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return None


def _book(file: File, row: int, raw: bytes, name: str) -> Record | Reject | Passed:
    if b"\0" in raw:
        return Reject(name, 1, "binary: holds a NUL byte")
    if (text := decoded(raw)) is None:
        return Reject(name, 1, "neither UTF-8 nor the character set that its header names")
    body, meta = gutenberg(text)
    if not body.strip():
        return Passed(file.relative, "no text")
    return Record(file.relative, row, file.unit(row), file.kind, body, meta=meta or None)


def books(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a book."""
    try:
        if file.relative.lower().endswith(".epub"):
            yield epub(file, limits)
        elif file.relative.lower().endswith(".zip"):
            yield from _zipped(file, limits)
        else:
            with open_bytes(file.fetch(), limits) as stream:
                raw = stream.read(limits.record + 1)
            if len(raw) > limits.record:
                yield Reject(file.relative, 1, f"longer than {limits.record:,} bytes")
            else:
                yield _book(file, 0, raw, file.relative)
    except (*DAMAGED, *_ZIP_DAMAGED) as error:
        yield Reject(file.relative, 1, f"cut off or damaged: {str(error)[:200]}")


_ZIP_DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, KeyError, ValueError)
"""What zipfile raises: RuntimeError for an encrypted member, NotImplementedError for a method that it does not know."""


def _zipped(file: File, limits: Limits) -> Result:
    """Every .txt of a zip file. Each may be as long as a record, all together as long as the file may expand."""
    path = file.fetch()
    left = limits.expanded(path.stat().st_size)
    row = 0
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda each: each.filename):
            name = f"{file.relative}:{info.filename}".encode("utf-8", "replace").decode("utf-8")[:300]
            if info.is_dir() or not info.filename.lower().endswith((".txt", ".text")):
                continue
            if problem := outside(info.filename):
                yield Reject(file.relative, row, problem)
            else:
                try:
                    raw = member(archive, info.filename, min(limits.record, left))
                    left -= len(raw)
                    yield _book(file, row, raw, name)
                except (*DAMAGED, *_ZIP_DAMAGED) as error:
                    yield Reject(name, 1, f"cut off or damaged: {str(error)[:200]}")
            row += 1


def outside(name: str) -> str | None:
    """Why a name in an archive is not to be believed: it leads out of the archive's own folder."""
    plain = posixpath.normpath(name.replace("\\", "/"))
    bad = plain.startswith(("/", "../")) or plain == ".." or re.match(r"^[A-Za-z]:", plain)
    return f"a name that leads out of its archive: '{name[:100]}'" if bad else None


def member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of an archive, at most `most` bytes. Raises OSError past that, whatever size the archive states."""
    with archive.open(name) as stream:
        raw = stream.read(most + 1)
    if len(raw) > most:
        raise OSError(f"'{name[:100]}' becomes longer than {most:,} bytes")
    return raw


def epub(file: File, limits: Limits) -> Record | Reject | Passed:
    """An EPUB (OCF 3): container.xml names the package, whose spine gives the chapters in reading order."""
    plain = html.plain_text()
    with zipfile.ZipFile(file.fetch()) as archive:
        names = set(archive.namelist())
        if "META-INF/encryption.xml" in names and b"EncryptedData" in member(
            archive, "META-INF/encryption.xml", 1 << 20
        ):
            return Reject(file.relative, 1, "encrypted")
        try:
            package = _package_path(member(archive, "META-INF/container.xml", 1 << 20))
            chapters, meta = _spine(member(archive, package, 4 << 20), posixpath.dirname(package))
        except xml.Broken as error:
            return Reject(file.relative, 1, str(error))
        texts: list[str] = []
        left = limits.record
        for chapter in chapters:
            if problem := outside(chapter):
                return Reject(file.relative, 1, problem)
            if chapter not in names:
                return Reject(file.relative, 1, f"its chapter '{chapter[:100]}' is not in the file")
            raw = member(archive, chapter, left)
            left -= len(raw)
            try:
                texts.append(plain(html.decoded(raw, "utf-8" if b"encoding=" not in raw[:200] else None)).strip())
            except html.Unreadable as error:
                return Reject(file.relative, 1, f"HTML that cannot be read: {error}")
    body, more = gutenberg("\n\n".join(filter(None, texts)))
    if not body.strip():
        return Passed(file.relative, "no text")
    return Record(file.relative, 0, file.unit(0), file.kind, body, meta={**more, **meta} or None)


def _package_path(container: bytes) -> str:
    found: list[str] = []
    xml.scan(container, frozenset(["rootfile"]), lambda _, given, __: found.append(given.get("full-path", "")))
    if not found or not found[0]:
        raise xml.Broken("META-INF/container.xml names no package")
    return found[0]


def _spine(package: bytes, folder: str) -> tuple[list[str], dict[str, str]]:
    """(the chapters' names in the archive, title, author and language)."""
    items: dict[str, str] = {}
    order: list[str] = []
    meta: dict[str, str] = {}

    def element(name: str, given: dict[str, str], text: str) -> None:
        if name == "item" and "html" in given.get("media-type", "html"):
            items[given.get("id", "")] = posixpath.normpath(posixpath.join(folder, unquote(given.get("href", ""))))
        elif name == "itemref" and given.get("linear", "yes") != "no":
            order.append(given.get("idref", ""))
        elif name in _DUBLIN and text.strip():
            meta.setdefault(_DUBLIN[name], text.strip())

    xml.scan(package, frozenset(["item", "itemref", *_DUBLIN]), element)
    # A chapter that the spine names many times is read once.
    return list(dict.fromkeys(items[each] for each in order if each in items)), meta


_DUBLIN: dict[str, Any] = {"title": "title", "creator": "author", "language": "language"}
