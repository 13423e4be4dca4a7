"""Small files of the real formats, made by hand as the sources' own releases have them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import zstandard

from lmlab.corpus import readers
from lmlab.corpus.readers import Limits, Passed, Record, Reject
from lmlab.corpus.source import SourceConfig


def read(path: Path | str, limits: Limits | None = None, **settings) -> list[Record | Reject | Passed]:
    """All that a source yields."""
    source = SourceConfig(path=str(path), **settings)
    return [item for file in readers.listing(source).files for item in readers.read(file, source, limits or Limits())]


def records(items: Iterable[Record | Reject | Passed]) -> list[Record]:
    return [item for item in items if isinstance(item, Record)]


def texts(items: Iterable[Record | Reject | Passed]) -> list[str]:
    return [item.text for item in records(items)]


def rejects(items: Iterable[Record | Reject | Passed]) -> list[Reject]:
    return [item for item in items if isinstance(item, Reject)]


def passed(items: Iterable[Record | Reject | Passed]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Passed)]


def page(title: str, paragraphs: Iterable[str]) -> bytes:
    """A web page with what surrounds an article on real ones."""
    body = "".join(f"<p>{escape(each)}</p>" for each in paragraphs)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        "<style>p { color: red }</style><script>var tracker = 1;</script></head><body>"
        '<nav class="menu"><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop now</a></li></ul></nav>'
        f"<main><article><h1>{escape(title)}</h1>{body}</article></main>"
        '<footer class="footer"><p>Copyright, all rights reserved. <a href="/cookies">Cookie policy</a></p></footer>'
        "</body></html>"
    ).encode()


def warc_record(kind: str, url: str, content: bytes, media: str = "application/http; msgtype=response") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-02-29T01:02:03Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000001>\r\n"
        f"Content-Type: {media}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def response(url: str, body: bytes, status: str = "200 OK", fields: Mapping[str, str] | None = None) -> bytes:
    lines = {"Content-Type": "text/html; charset=utf-8", **(fields or {})}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    return warc_record("response", url, head.encode() + body)


def write_warc(path: Path, parts: Iterable[bytes]) -> Path:
    """A gzip member a record, as Common Crawl has it, after the usual warcinfo."""
    first = warc_record("warcinfo", "", b"software: test\r\n", "application/warc-fields")
    path.write_bytes(b"".join(gzip.compress(part) for part in (first, *parts)))
    return path


def wiki_page(title: str, text: str, number: int = 1, ns: int = 0, redirect: str = "", model: str = "wikitext") -> str:
    target = f"\n    <redirect title={quoteattr(redirect)} />" if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{ns}</ns>\n    <id>{number}</id>{target}\n"
        "    <revision>\n      <id>99</id>\n      <timestamp>2024-01-02T03:04:05Z</timestamp>\n"
        "      <contributor>\n        <username>Somebody</username>\n        <id>5</id>\n      </contributor>\n"
        f"      <model>{model}</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>\n'
        "    </revision>\n  </page>\n"
    )


WIKI_HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""


def write_wiki(path: Path, pages: Iterable[str]) -> Path:
    path.write_bytes(bz2.compress((WIKI_HEAD + "".join(pages) + "</mediawiki>\n").encode()))
    return path


def post(number: int, kind: int, body: str, score: int = 0, **attributes: object) -> str:
    fields = {"Id": number, "PostTypeId": kind, "CreationDate": "2020-01-01T00:00:00.000", "Score": score, "Body": body}
    fields |= {"ContentLicense": "CC BY-SA 4.0", **attributes}
    inside = " ".join(f"{name}={_attribute(str(value))}" for name, value in fields.items())
    return f"  <row {inside} />\n"


def _attribute(value: str) -> str:
    return '"' + escape(value, {'"': "&quot;", "\n": "&#xA;"}) + '"'


def write_posts(path: Path, rows: Iterable[str]) -> Path:
    head = '\ufeff<?xml version="1.0" encoding="utf-8"?>\r\n<posts>\n'
    path.write_text(head + "".join(rows) + "</posts>", encoding="utf-8")
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar, compressed by its name's ending."""
    mode = "w:gz" if path.name.endswith((".gz", ".tgz")) else "w"
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def packed_tar(files: Mapping[str, bytes]) -> bytes:
    """A .tar.gz in memory: a paper as arXiv ships it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def write_epub(path: Path, chapters: Mapping[str, str], package: str | None = None) -> Path:
    """An EPUB whose spine is in the order of `chapters` (name -> body of the XHTML)."""
    items = "".join(
        f'<item id="c{i}" href="{name}" media-type="application/xhtml+xml"/>' for i, name in enumerate(chapters)
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    package = package or (
        '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Book</dc:title><dc:creator>A. Writer</dc:creator>'
        f'<dc:language>en</dc:language></metadata><manifest>{items}<item id="css" href="s.css" media-type="text/css"/>'
        f"</manifest><spine>{spine}</spine></package>"
    )
    container = (
        '<?xml version="1.0"?><container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
        '<rootfiles><rootfile full-path="OEBPS/content.opf" media-type="application/oebps-package+xml"/></rootfiles>'
        "</container>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/content.opf", package)
        # In the archive the chapters lie in another order than in the spine.
        for name in sorted(chapters, reverse=True):
            body = f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head><body>{chapters[name]}</body></html>'
            archive.writestr(f"OEBPS/{name}", body)
    return path


def write_lines(path: Path, rows: Iterable[object]) -> Path:
    """JSON Lines, compressed by the name's ending."""
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    elif path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return path
