"""The formats: which reader a file's name asks for, what it needs installed, and whether its rows are split."""

from __future__ import annotations

import importlib.util
import re
import tarfile
from pathlib import Path

from lmlab.corpus.languages import CODE
from lmlab.corpus.readers.records import DAMAGED, open_bytes

TEXT = frozenset(["txt", "text", "md", "markdown", "rst", "tex", "org", "adoc", "asciidoc"])
JSONL = frozenset(["jsonl", "ndjson"])
COMPRESSED = ("gz", "zst", "zstd", "bz2", "xz")

READERS = {
    "text": "files:text",
    "jsonl": "files:jsonl",
    "parquet": "files:parquet",
    "topics": "files:topics",
    "arithmetic": "files:arithmetic",
    "code": "code:code",
    "warc": "web:warc",
    "wet": "web:wet",
    "wikipedia": "wikipedia:wikipedia",
    "books": "books:books",
    "latex": "arxiv:latex",
    "stackexchange": "stackexchange:stackexchange",
    "submissions": "reddit:submissions",
    "dialogue": "dialogue:dialogue",
}
"""Reader -> the module here and the function in it, imported when a file asks for it."""

BY_ROW = frozenset(READERS) - {"text", "code", "books", "latex"}
"""Readers whose rows are split into training and held-out ones; of the others a file is on one side."""

# Names as the sources' own releases have them, without the ending of the compression, in lower case.
_NAMES = (
    (re.compile(r"\.wet$"), "wet"),
    (re.compile(r"\.warc$"), "warc"),
    (re.compile(r"pages-(articles|meta)[\w-]*\.xml(-p\d+p\d+)?$"), "wikipedia"),
    (re.compile(r"(^|[._-])posts\.xml$"), "stackexchange"),
    (re.compile(r"^rs_\d{4}-\d\d(-\d\d)?(\.jsonl|\.ndjson)?$"), "submissions"),
    (re.compile(r"^rc_\d{4}-\d\d(-\d\d)?(\.jsonl|\.ndjson)?$"), "dialogue"),
    (re.compile(r"\.epub$"), "books"),
    (re.compile(r"^arxiv_src_.*\.tar$"), "latex"),
)


def endings(name: str) -> tuple[str, str]:
    """(ending under any compression, compression), such as ('jsonl', 'gz')."""
    parts = name.rsplit("/", 1)[-1].lower().split(".")
    compression = parts.pop() if len(parts) > 1 and parts[-1] in COMPRESSED else ""
    return (parts[-1] if len(parts) > 1 else ""), compression


def reader_of(name: str, local: Path | None) -> str | None:
    """Which reader a file's name asks for; XML and tar files that are here are looked into."""
    ending, compression = endings(name)
    plain = name.rsplit("/", 1)[-1].lower().removesuffix(f".{compression}")
    for pattern, reader in _NAMES:
        if pattern.search(plain):
            return reader
    if ending in JSONL or (ending == "json" and compression):
        return "jsonl"
    if ending == "parquet" and not compression:
        return "parquet"
    if ending in CODE:
        return "code"
    if ending == "xml" and local is not None:
        return _xml(local)
    if ending in ("tar", "tgz") and local is not None:
        return "latex" if _holds_latex(local) else None
    return "text" if ending in TEXT or ending == "" else None


def single_reader(reader: str, ending: str) -> bool:
    """May a reader that was named for a whole folder have this file? (Pictures lie beside books.)"""
    wanted = {"books": {"txt", "epub", "zip", "", "text"}, "latex": {"tex", "tar", "tgz", "", "ltx"}}.get(reader)
    return wanted is None or ending in wanted or (reader == "latex" and ending.isdigit())  # 2301.00001.gz


def _beginning(path: Path) -> bytes:
    try:
        with open_bytes(path) as stream:
            return stream.read(4096)
    except DAMAGED:
        return b""


def _xml(path: Path) -> str | None:
    start = _beginning(path)
    return "wikipedia" if b"<mediawiki" in start else "stackexchange" if b"<posts>" in start else None


def _holds_latex(path: Path) -> bool:
    """Is there a .tex file, or what arXiv calls its papers, among the first members of a tar file?"""
    try:
        with open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for _, member in zip(range(100), tar, strict=False):
                if member.name.endswith(".tex") or re.search(r"(^|/)\d{4}\.\d{4,5}\.gz$", member.name):
                    return True
    except (tarfile.TarError, *DAMAGED):
        pass
    return False


def missing(reader: str, name: str = "", extractor: str = "resiliparse") -> str | None:
    """What is not installed that a reader needs."""
    needed = extractor if reader == "warc" else "resiliparse" if reader == "stackexchange" else ""
    if reader == "books" and name.lower().endswith(".epub"):
        needed = "resiliparse"
    if needed and importlib.util.find_spec(needed) is None:
        return f"the reader '{reader}' needs {needed}: pip install 'lmlab[web]'"
    return None
