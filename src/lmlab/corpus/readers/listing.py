"""From a source's path to its files: folders, single files, the special names of Python's own text, and the hub."""

from __future__ import annotations

import os
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.corpus.config import SourceConfig
from lmlab.errors import Refused, nearest

TEXT = frozenset(["txt", "text", "md", "markdown", "rst", "tex", "org", "adoc", "asciidoc"])
CODE = frozenset("""
    py pyi c h cc cpp cxx hpp hh cu cs java kt scala js jsx mjs ts tsx go rs rb php pl pm lua r jl swift m mm hs ml mli
    ex exs erl clj sh bash zsh ps1 sql vim el lisp scm f f90 f95 asm s v sv vhd zig nim dart cmake mk proto
""".split())  # fmt: skip  # noqa: SIM905 (a table of endings reads better so)
JSONL = frozenset(["jsonl", "ndjson"])
SPECIAL = ("python:stdlib", "python:topics")
_NOT_LIBRARY = frozenset([
    "test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "__pycache__", "pydoc_data",
    "lib-dynload",
])  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file of a source: its name relative to the source, how it is read, and what it weighs as text (bytes)."""

    relative: str
    reader: str
    kind: str
    local: Path | None
    weight: int
    by_row: bool
    remote: tuple[str, str] | None = None

    def fetch(self) -> Path:
        """The file on this machine; downloads it from the hub if it is not here yet."""
        if self.local is not None:
            return self.local
        from lmlab.corpus.readers.hub import download

        repository, revision = self.remote or ("", "")
        return download(repository, revision, self.relative)


@dataclass
class Listing:
    """The files of a source in a fixed order, and how many were passed over, by ending."""

    files: list[File]
    skipped: Counter[str] = field(default_factory=Counter)


def listing(source: SourceConfig, where: str = "sources", pinned: dict[str, Any] | None = None) -> Listing:
    """Find the files of a source. Raises Refused where the path leads nowhere or holds nothing to read.

    `where` names the setting in messages; `pinned` is what an earlier look at a hub dataset found.
    """
    path = source.path
    if path.startswith("hf:"):
        from lmlab.corpus.readers.hub import files

        names = (pinned or {}).get("files") or files(path, where)["files"]
        found = _classify(names, source, None, path, (pinned or {}).get("revision", ""))
    elif path == "python:stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        names = [name for name in _walk(root, _NOT_LIBRARY) if _library(name)]
        found = _classify(names, source, root, path)
    elif path == "python:topics":
        found = Listing([_topics(where)])
    elif path.startswith("python:"):
        raise Refused(f"{where}.path: '{path}' is not known{nearest(path, SPECIAL)}")
    else:
        place = Path(path).expanduser()
        if place.is_dir():
            found = _classify(_walk(place, frozenset({"__pycache__"})), source, place, path)
        elif place.is_file():
            found = _classify([place.name], source, place.parent, path, single=True)
        else:
            raise Refused(f"{where}.path: '{path}' does not exist{_nearby(place)}")
    if not found.files:
        passed = ", ".join(f"{n} {ending}" for ending, n in found.skipped.most_common(5))
        raise Refused(
            f"{where}.path: '{path}' holds no file that reader '{source.reader}' reads"
            + (f" (passed over: {passed}); name a reader: text, code, jsonl or parquet" if passed else "; it is empty")
        )
    return found


def _nearby(path: Path) -> str:
    """A hint at the nearest existing name: in the deepest folder of the path that exists."""
    folder, wanted = path.parent, path.name
    while not folder.is_dir():
        folder, wanted = folder.parent, folder.name
    try:
        names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    except OSError:
        names = []
    hint = nearest(wanted, names) if len(names) <= 1000 else ""
    if hint.startswith(";"):
        return f"; did you mean '{folder / hint.split(chr(39))[1]}'?"
    return f" (in '{folder}' there is no '{wanted}')"


def _walk(root: Path, without: frozenset[str]) -> list[str]:
    """Relative names of the files under a folder, sorted; hidden ones and those in folders of `without` left out."""
    names = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in without and not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        names += [(relative / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(names)


def _library(name: str) -> bool:
    """Is this a module of the standard library that people wrote? (_sysconfigdata is this machine's build settings.)"""
    return name.endswith(".py") and not name.rsplit("/", 1)[-1].startswith("_sysconfigdata")


def _endings(name: str) -> tuple[str, str]:
    """(ending under any compression, compression), such as ('jsonl', 'gz')."""
    parts = name.rsplit("/", 1)[-1].lower().split(".")
    compression = parts.pop() if len(parts) > 1 and parts[-1] in ("gz", "zst", "zstd") else ""
    return (parts[-1] if len(parts) > 1 else ""), compression


def _reader(ending: str, compression: str) -> str | None:
    """Which reader a file's name asks for."""
    if ending in JSONL or (ending == "json" and compression):
        return "jsonl"
    if ending == "parquet" and not compression:
        return "parquet"
    if ending in CODE:
        return "code"
    return "text" if ending in TEXT or ending == "" else None


def _classify(
    names: list[str], source: SourceConfig, root: Path | None, path: str, revision: str = "", *, single: bool = False
) -> Listing:
    found = Listing([])
    for name in names:
        ending, compression = _endings(name)
        reader = _reader(ending, compression) if source.reader == "auto" else source.reader
        if reader is None and single:
            reader = "text"
        local = root / name if root is not None else None
        unreadable = reader == "text" and ending == "" and not compression and local is not None and _binary(local)
        if reader is None or (unreadable and not single):
            found.skipped[f".{ending}" if ending else "binary"] += 1
            continue
        kind = source.kind if source.kind != "auto" else "code" if ending in CODE else "prose"
        if kind == "code" and source.extract == "docstrings" and source.kind == "auto" and ending in ("py", "pyi"):
            kind = "prose"
        size = local.stat().st_size if local is not None else 1
        weight = size * (4 if compression or reader == "parquet" else 1)  # text compresses to about a quarter
        by_row = reader in ("jsonl", "parquet") or (single and reader == "text")
        remote = None if root is not None else (path, revision)
        found.files.append(File(_printable(name), reader, kind, local, weight, by_row, remote))
    return found


def _printable(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 are written out, since ids must be valid Unicode."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _binary(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(8192)
    except OSError:
        return True


def _topics(where: str) -> File:
    """The help topics of pydoc: what `help('LOOPING')` prints."""
    try:
        import pydoc_data.topics
    except ImportError:
        raise Refused(
            f"{where}.path: this Python comes without its help topics (pydoc_data); use another source"
        ) from None
    place = Path(pydoc_data.topics.__file__ or "")
    return File("topics.py", "topics", "prose", place, place.stat().st_size, True)
