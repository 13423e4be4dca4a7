"""From a file to its records: the reader of its format is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from lmlab.corpus.readers.formats import READERS
from lmlab.corpus.readers.listing import File
from lmlab.corpus.readers.records import Limits, Record, Result
from lmlab.corpus.source import SourceConfig


def read(file: File, source: SourceConfig, limits: Limits) -> Result:
    """Stream one file. Raises Refused only where the settings are wrong for the file (a column that is not there)."""
    module, function = READERS[file.reader].split(":")
    reader = getattr(importlib.import_module(f"lmlab.corpus.readers.{module}"), function)
    yield from reader(file, source, limits)


def units(file: File, source: SourceConfig, limits: Limits) -> Iterator[str]:
    """The units of a file's rows, as `read` would name them. Readers that sort first have a way that does not."""
    module = importlib.import_module(f"lmlab.corpus.readers.{READERS[file.reader].split(':')[0]}")
    if (named := getattr(module, "units", None)) is not None:
        yield from named(file, source, limits)
        return
    yield from (item.unit for item in read(file, source, limits) if isinstance(item, Record))


def link_files(source: SourceConfig, where: str) -> list[Path]:
    """The files that a source's wanted addresses come from. Raises Refused where they are named and not there."""
    from lmlab.corpus.readers.links import files_of

    return files_of(source.web.urls, f"{where}.web.urls") if source.web.urls else []
