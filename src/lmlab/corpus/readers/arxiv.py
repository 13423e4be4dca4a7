r"""arXiv's sources: a tar of papers, each a gzip file of a tar or of one .tex file; or one paper's tar; or a .tex file.

Nothing is unpacked to disk: names inside a tar are only looked up by \input, never used as paths.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import IO

from lmlab.corpus.readers.books import outside
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, open_bytes, unpacked
from lmlab.corpus.readers.tex import paper
from lmlab.corpus.source import SourceConfig

_BROKEN = (tarfile.TarError, *DAMAGED)
_SOURCES = (".tex", ".ltx", ".latex")


def latex(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a paper."""
    row = 0
    for found in _papers(file, limits):
        if isinstance(found, Reject | Passed):
            yield found
            continue
        name, files = found
        text = paper(files, limits.record)
        if text is None:
            yield Passed(file.relative, "no LaTeX")
        elif len(text) > limits.record:
            yield Reject(file.relative, row, f"'{name}': longer than {limits.record:,} characters")
        else:
            yield Record(file.relative, row, f"{file.relative}#{name}", file.kind, text, meta={"paper": name})
        row += 1


def _papers(file: File, limits: Limits) -> Iterator[tuple[str, dict[str, str]] | Reject | Passed]:
    """(name, the paper's .tex files) of each paper. The .tex files of a tar are one paper; a .gz in it is one each."""
    own: dict[str, str] = {}
    name = file.relative.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
    try:
        with open_bytes(file.fetch(), limits) as stream:
            if not _is_tar(stream):
                raw = stream.read(limits.record + 1)
                if len(raw) > limits.record:
                    yield Reject(file.relative, 0, f"longer than {limits.record:,} bytes")
                else:
                    yield name.removesuffix(".tex"), {name: _decoded(raw)}
                return
            left = limits.record
            for each in _members(stream, limits):
                if isinstance(each, str):
                    yield Reject(file.relative, 0, each)
                elif each[0].endswith(".gz"):
                    yield _nested(file, *each, limits)
                elif each[0].lower().endswith(_SOURCES):
                    left -= len(each[1])
                    own[each[0]] = _decoded(each[1]) if left >= 0 else ""
                else:
                    yield Passed(file.relative, "a paper without LaTeX")
    except _BROKEN as error:
        yield Reject(file.relative, 0, f"cut off or damaged: {str(error)[:200]}")
    if own:
        yield name, own


def _is_tar(stream: IO[bytes]) -> bool:
    start = stream.peek(512)[:512]  # type: ignore[attr-defined]
    return len(start) == 512 and start[257:262] == b"ustar"


def _members(stream: IO[bytes], limits: Limits) -> Iterator[tuple[str, bytes] | str]:
    """(name, content) of the files that may hold LaTeX, or in place of one why it is not read."""
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            tar.members = []  # type: ignore  # tarfile remembers every member that it has seen
            name = member.name
            if not member.isreg():
                continue  # folders; links, which lead anywhere; devices
            if problem := outside(name):
                yield problem
            elif name.lower().endswith((*_SOURCES, ".gz")):
                if member.size > limits.record:
                    yield f"'{name[:100]}': longer than {limits.record:,} bytes"
                elif (content := tar.extractfile(member)) is not None:
                    yield name.removeprefix("./"), content.read()
            elif name.lower().endswith(".pdf") and name.count("/") <= 1 and name.split("/")[-1][:4].isdigit():
                yield name, b""  # a paper of which arXiv has the PDF alone


def _nested(file: File, name: str, data: bytes, limits: Limits) -> tuple[str, dict[str, str]] | Reject:
    """A paper inside a tar of papers."""
    plain = name.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".tar")
    files: dict[str, str] = {}
    try:
        raw = unpacked(data, limits)
        stream = io.BufferedReader(io.BytesIO(raw), 1 << 16)  # type: ignore[arg-type]
        if not _is_tar(stream):
            return plain, {f"{plain}.tex": _decoded(raw)}
        for each in _members(stream, limits):
            if isinstance(each, str):
                return Reject(file.relative, 0, f"'{plain}': {each}")
            if each[0].lower().endswith(_SOURCES):
                files[each[0]] = _decoded(each[1])
    except _BROKEN as error:
        return Reject(file.relative, 0, f"'{plain}': cut off or damaged: {str(error)[:200]}")
    return plain, files


def _decoded(raw: bytes) -> str:
    """UTF-8, else Latin-1: TeX before 2018 was written in whatever the author's machine had, mostly ASCII."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.replace("\0", "")
