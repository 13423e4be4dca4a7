"""Code: a document a file. Language by name, licence, generated and minified files, and what is taken out of Python."""

from __future__ import annotations

import functools
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmlab.corpus.extract import code_without_docstrings, docstrings
from lmlab.corpus.languages import LICENSE_FILE, allowed, language, license_of, spdx, unwritten, wanted_licenses
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import DAMAGED, Limits, Passed, Record, Reject, Result, open_bytes
from lmlab.corpus.source import SourceConfig


@dataclass(frozen=True)
class Judged:
    """A file of code as the source's settings take it: what is kept of it, or why it is not."""

    text: str
    kind: str
    drop: str | None = None
    passed: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def judge(path: str, text: str, source: SourceConfig, licence: Any) -> Judged:
    """Language, licence (an SPDX identifier, a list of them, or None for not known) and markers of generated files.

    A file under a licence that is not wanted keeps its place and the reason, not its text.
    """
    settings = source.code
    spoken = language(path)
    kind = source.kind if source.kind != "auto" else "code" if spoken else "prose"
    if settings.languages and spoken not in settings.languages:
        return Judged("", kind, passed=f"language {spoken or 'not known'}")
    licences = [licence] if isinstance(licence, str) else [str(each) for each in licence or []]
    licences = licences or [each for each in [spdx(text)] if each]
    meta = {name: value for name, value in (("language", spoken), ("license", ", ".join(licences))) if value}
    if settings.licenses:
        wanted = wanted_licenses(settings.licenses)
        bad = [each for each in licences if not allowed(each, wanted)]
        if bad or not licences:
            return Judged("", kind, drop=f"licence: {bad[0][:60] if bad else 'not known'}", meta=meta)
    drop = None
    if settings.generated == "drop" or (settings.generated == "auto" and not source.path.startswith("python:")):
        drop = unwritten(path, text)
    return Judged(text, kind, drop=drop, meta=meta)


def code(file: File, source: SourceConfig, limits: Limits) -> Result:
    """A document a file; Python files are decoded as they declare and extracted from as the source says."""
    try:
        with open_bytes(file.fetch(), limits) as stream:
            raw = stream.read(limits.record + 1)
    except DAMAGED as error:
        yield Reject(file.relative, 1, f"cut off or damaged: {error}")
        return
    if len(raw) > limits.record:
        yield Reject(file.relative, 1, f"longer than {limits.record:,} bytes")
        return
    name = file.relative.removesuffix(".gz").removesuffix(".zst")
    python = name.endswith((".py", ".pyi"))
    judged = Judged("", file.kind)
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if python else "utf-8"
        text = raw.decode(encoding)
        if "\0" in text:
            yield Reject(file.relative, 1, "binary: holds a NUL byte")
            return
        judged = judge(name, text, source, spdx(text) or _nearest_license(file, source))
        text = judged.text
        if python and source.extract != "whole" and not judged.drop and not judged.passed:
            module = file.relative.rsplit(".py", 1)[0].removesuffix("/__init__").replace("/", ".")
            text = code_without_docstrings(text) if source.extract == "code" else docstrings(text, module)
    except UnicodeDecodeError as error:
        yield Reject(file.relative, raw[: error.start].count(b"\n") + 1, f"not {error.encoding}: {error.reason}")
        return
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        yield Reject(file.relative, line, f"not Python {type(error).__name__}: {getattr(error, 'msg', error)}")
        return
    if judged.passed:
        yield Passed(file.relative, judged.passed)
        return
    yield Record(file.relative, 0, file.unit(0), file.kind, text, judged.drop, judged.meta or None)


def _nearest_license(file: File, source: SourceConfig) -> str | None:
    """The licence of the LICENSE or COPYING file that is nearest above a file, inside its source."""
    if not source.code.licenses or file.local is None:
        return None
    return _license_above(file.local.parent, file.relative.count("/"))


@functools.lru_cache(maxsize=65536)
def _license_above(folder: Path, levels: int) -> str | None:
    try:
        names = sorted(each.name for each in folder.iterdir() if LICENSE_FILE.match(each.name) and each.is_file())
    except OSError:
        names = []
    for name in names:
        with (folder / name).open("rb") as stream:
            if found := license_of(stream.read(65536).decode("utf-8", "replace")):
                return found
    return _license_above(folder.parent, levels - 1) if levels > 0 and not names else None
