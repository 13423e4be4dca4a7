"""Reading evaluation sets: (id, text) of each item."""

from __future__ import annotations

import gzip
import importlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lmlab.corpus.contamination.config import RULES, EvaluationSet
from lmlab.corpus.dedup.units import units
from lmlab.errors import Failed, Refused, nearest

TASKS = "lmlab.evaluate.texts"
"""The module of a higher floor whose `texts(name)` gives a task's items; found by its name, and only where it is asked."""


def check(found: EvaluationSet, where: str) -> list[Path]:
    """The set's files. Raises Refused where there is nothing to read, before any work."""
    if found.path.startswith("task:"):
        next(_task(found, where), None)
        return []
    path = Path(found.path).expanduser()
    if not path.is_file():
        raise Refused(
            f"{where}.path: '{found.path}' is no file; expected JSON Lines (.jsonl, .gz or .zst), or task:NAME"
        )
    next(iter(items(found, where)), None)
    return [path]


def items(found: EvaluationSet, where: str = "evaluation") -> Iterator[tuple[str, str]]:
    """(id, text) of each item; ids are `name#row`, or `name/ID` where the item has a field `id`."""
    yield from itertools.islice(
        _task(found, where) if found.path.startswith("task:") else _file(found, where), found.limit
    )


def _task(found: EvaluationSet, where: str) -> Iterator[tuple[str, str]]:
    try:
        texts = importlib.import_module(TASKS).texts
    except ImportError as error:
        raise Refused(f"{where}.path: '{found.path}': no tasks can be had here ({error}); give a file") from None
    for each, text in texts(found.path.removeprefix("task:")):
        yield f"{found.name}/{each}", text


def _file(found: EvaluationSet, where: str) -> Iterator[tuple[str, str]]:
    for row, line in enumerate(_lines(Path(found.path).expanduser())):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refused(f"{where}: {found.path}:{row + 1}: is no JSON: {error}") from None
        if not isinstance(item, dict):
            raise Refused(f"{where}: {found.path}:{row + 1}: expected an object, found {type(item).__name__}")
        for name in found.fields:
            if name not in item:
                raise Refused(f"{where}.fields: '{name}' is no field of {found.path}:{row + 1}{nearest(name, item)}")
        values = [item[name] for name in found.fields] if found.fields else list(item.values())
        text = "\n".join(itertools.chain.from_iterable(_strings(value) for value in values))
        name = f"{found.name}/{item['id']}" if isinstance(item.get("id"), str | int) else f"{found.name}#{row}"
        yield name, text


def _strings(value: Any) -> Iterable[str]:
    """The strings in a value, in order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value if isinstance(value, list) else value.values():
            yield from _strings(each)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as raw, _plain(path, raw) as stream:
            yield from io.TextIOWrapper(stream, encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Failed(f"{path}: could not be read: {error}") from None


def _plain(path: Path, raw: Any) -> Any:
    """The stream without its compression, by the name's ending."""
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(raw)
    return raw


def size_of_ngram(found: EvaluationSet, texts: Iterable[str]) -> int:
    """Words in an n-gram for this set: what it says, or what its rule says of its texts."""
    fixed = found.ngram or RULES[found.rule][0]
    if fixed is not None:
        return fixed
    lengths = np.diff(units(pa.array(list(texts), pa.string()), "word").at)
    return int(np.clip(np.percentile(lengths, 5), 8, 13)) if len(lengths) else 13
