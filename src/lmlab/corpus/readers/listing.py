"""From a source's path to its files: folders, single files, the special names of Python's own text, and the hub."""

from __future__ import annotations

import fnmatch
import os
import stat
import sysconfig
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmlab.corpus.languages import CODE
from lmlab.corpus.readers.formats import BY_ROW, endings, missing, reader_of, single_reader
from lmlab.corpus.source import SourceConfig
from lmlab.errors import Refused, nearest

SPECIAL = ("python:stdlib", "python:topics", "generated:arithmetic")
GENERATED_BYTES = 64
"""About what a document of arithmetic weighs."""
_NOT_LIBRARY = frozenset([
    "test", "tests", "idle_test", "site-packages", "dist-packages", "ensurepip", "__pycache__", "pydoc_data",
    "lib-dynload",
])  # fmt: skip


@dataclass(frozen=True)
class File:
    """One file of a source: its name relative to the source, how it is read, and what it weighs as text (bytes).

    Reply trees run over several files: then `parts` are those files, and they are read as one.
    """

    relative: str
    reader: str
    kind: str
    local: Path | None
    weight: int
    by_row: bool
    remote: tuple[str, str] | None = None
    parts: tuple[File, ...] = ()

    def unit(self, row: int | str) -> str:
        """What the held-out split hashes: the file, or the row where rows are split."""
        return f"{self.relative}#{row}" if self.by_row else self.relative

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
    if reason := missing(source.reader, "", source.web.extractor):
        raise Refused(f"{where}.reader: {reason}")
    if path.startswith("hf:"):
        from lmlab.corpus.readers.hub import files

        names = (pinned or {}).get("files") or files(path, where)["files"]
        found = _classify(names, source, None, path, (pinned or {}).get("revision", ""))
    elif path == "python:stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        names = [name for name in _walk(root, _NOT_LIBRARY) if _library(name)]
        found = _classify(names, source, root, path)
    elif path in ("python:topics", "generated:arithmetic"):
        found = Listing([_topics(where) if path == "python:topics" else _arithmetic(source)])
    elif path.startswith(("python:", "generated:")):
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
            + (f" (passed over: {passed}); name a reader, such as text or jsonl" if passed else "; it is empty")
        )
    for each in found.files:
        if reason := missing(each.reader, each.relative, source.web.extractor):
            raise Refused(f"{where}.path: {each.relative}: {reason}")
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


def _classify(
    names: list[str], source: SourceConfig, root: Path | None, path: str, revision: str = "", *, single: bool = False
) -> Listing:
    found = Listing([])
    for name in names:
        if source.files and not single and not fnmatch.fnmatchcase(name, source.files):
            found.skipped["(not in files)"] += 1
            continue
        local = root / name if root is not None else None
        size = _size(local) if local is not None else 1
        if isinstance(size, str):
            found.skipped[size] += 1
            continue
        ending, compression = endings(name)
        reader = reader_of(name, local) if source.reader == "auto" else source.reader
        if reader is None and single:
            reader = "text"
        unreadable = reader == "text" and ending == "" and not compression and local is not None and _binary(local)
        if reader is None or (unreadable and not single) or not single_reader(source.reader, ending):
            found.skipped[f".{ending}" if ending else "binary"] += 1
            continue
        kind = source.kind if source.kind != "auto" else "code" if ending in CODE else "prose"
        if kind == "code" and source.extract == "docstrings" and source.kind == "auto" and ending in ("py", "pyi"):
            kind = "prose"
        weight = size * (4 if compression or reader == "parquet" else 1)  # text compresses to about a quarter
        by_row = reader in BY_ROW or (single and reader == "text")
        remote = None if root is not None else (path, revision)
        found.files.append(File(_printable(name), reader, kind, local, weight, by_row, remote))
    found.files = _joined(found.files)
    return found


def _joined(files: list[File]) -> list[File]:
    """The files of reply trees as one: a message's parent may be in another file."""
    trees = tuple(file for file in files if file.reader == "dialogue")
    rest = [file for file in files if file.reader != "dialogue"]
    if trees:
        whole = replace(
            trees[0], relative="conversations", weight=sum(file.weight for file in trees), parts=trees, remote=None
        )
        rest.append(whole)
    return rest


def _size(path: Path) -> int | str:
    """Bytes of a file, or why it is passed over: a pipe would block, a link may lead nowhere or in a circle."""
    try:
        found = path.stat()
    except OSError:
        return "(broken link)"
    return found.st_size if stat.S_ISREG(found.st_mode) else "(not a file)"


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


def _arithmetic(source: SourceConfig) -> File:
    """What is generated has no file: its settings say all."""
    return File("arithmetic", "arithmetic", "prose", None, source.arithmetic.documents * GENERATED_BYTES, True)
