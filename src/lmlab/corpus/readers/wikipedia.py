"""MediaWiki's XML dumps (pages-articles.xml, usually .bz2): a document an article.

The dump is read line by line and cut into its pages; a parser sees one page at a time. So a broken page costs itself alone,
memory is one page, and a document type with entities is never parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lmlab.corpus.readers import xml
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, lines, open_bytes
from lmlab.corpus.readers.wikitext import FILES_AND_CATEGORIES, plain
from lmlab.corpus.source import SourceConfig

_NAMESPACE = re.compile(rb'<namespace key="(-?\d+)"[^>]*>([^<]*)</namespace>')
_SHOWN_NOWHERE = (6, 14)  # files and categories
_ELEMENTS = frozenset(["title", "ns", "redirect", "text", "model", "timestamp", "id"])
_REDIRECT = re.compile(r"^\s*#\s*redirect\b", re.IGNORECASE)


def pages(stream: Any, limits: Limits, prefixes: set[str]) -> Iterator[tuple[int, bytes | None]]:
    """(line number, the bytes from <page> to </page>), None in place of a page that is too long. The names of the
    namespaces of files and categories are added to `prefixes`."""
    piece: list[bytes] = []
    first = size = 0  # first: the line where the page begins, 0 outside of pages
    whole = True
    for number, line in lines(stream, limits.record):
        if not first:
            if line is None:
                yield number, None
            elif line.strip() == b"<page>":
                first, size, piece, whole = number, 0, [], True
            elif (found := _NAMESPACE.search(line)) and int(found[1]) in _SHOWN_NOWHERE:
                prefixes.add(found[2].decode("utf-8", "replace").lower())
            if not first:
                continue
        elif line is not None and line.strip() == b"<page>":  # the page before has no end
            yield first, b"".join(piece) if whole else None
            first, size, piece, whole = number, 0, [], True
        size += len(line) if line is not None else limits.record + 1
        if size > limits.record:
            piece, whole = [], False
        elif line is not None and whole:
            piece.append(line)
        if line is not None and line.strip().endswith(b"</page>"):
            yield first, b"".join(piece) if whole else None
            first = 0
    if first:
        raise EOFError("the file ends inside a page")


def wikipedia(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document an article; redirects and other namespaces are passed over. `row` counts the pages of the dump."""
    prefixes = set(FILES_AND_CATEGORIES)
    wanted = {str(n) for n in source.namespaces}
    row = last = 0
    try:
        with open_bytes(file.fetch(), limits) as stream:
            for number, data in pages(stream, limits, prefixes):
                last = number
                if data is None:
                    yield Reject(file.relative, number, f"a page longer than {limits.record:,} bytes")
                else:
                    yield _page(file, row, number, data, wanted, prefixes)
                row += 1
    except DAMAGED as error:
        yield Reject(file.relative, last + 1, f"cut off or damaged: {error}")


def _page(
    file: File, row: int, number: int, data: bytes, wanted: set[str], prefixes: set[str]
) -> Record | Reject | Passed:
    found: dict[str, str] = {}

    def element(name: str, attributes: dict[str, str], text: str) -> None:
        if name == "id":
            found.setdefault("id", text)  # the page's comes first, then the revision's
        elif name == "redirect":
            found["redirect"] = attributes.get("title", "")
        else:
            found[name] = text  # of several revisions the last

    try:
        xml.scan(data, _ELEMENTS, element)
    except xml.Broken as error:
        return Reject(file.relative, number, str(error))
    if "text" not in found or "title" not in found:
        return Reject(file.relative, number, "a page without title or text")
    if found.get("ns", "0") not in wanted:
        return Passed(file.relative, f"namespace {found['ns'][:10]}")
    if "redirect" in found or _REDIRECT.match(found["text"]):
        return Passed(file.relative, "redirect")
    if found.get("model", "wikitext") != "wikitext":
        return Passed(file.relative, f"content model {found['model'][:30]}")
    text = plain(found["text"], prefixes)
    if not text:
        return Passed(file.relative, "no text")
    meta = {"title": found["title"], "id": found.get("id", ""), "date": found.get("timestamp", "")}
    return Record(file.relative, row, file.unit(row), file.kind, f"{found['title']}\n\n{text}", meta=meta)
