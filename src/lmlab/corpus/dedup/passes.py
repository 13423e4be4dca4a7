"""The passes over the whole corpus, in order: each takes parts and gives them back with one more step.

Every task's identity holds the keys of the tasks before it, so a build that was cut off goes on where it was, and one
with other settings keeps what does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.corpus.dedup import documents, spans
from lmlab.corpus.dedup.documents import DuplicatesStep
from lmlab.corpus.dedup.index import IndexTask, NearDuplicates
from lmlab.corpus.dedup.shuffle import Answers, Part, ranges
from lmlab.corpus.dedup.spans import AnySpans, DuplicateSubstrings, GramKeys, Repeats, SpansStep, WindowKeys
from lmlab.corpus.engine import Task
from lmlab.run import digest, write_atomic

Do = Callable[[str, list[Task]], None]
"""Does tasks, under a title."""

SENTENCE_BYTES = 80
"""Text to a sentence, about; to size ranges only."""


def _map(parts: Sequence[Part], source: Callable[[Part], Any], folder: Path, *identity: Any) -> list[Task]:
    return [
        Task(source(part).tables, [], folder / f"part-{part.number:05d}.arrow", digest([part.key, *identity]))
        for part in parts
    ]


def _reduce(count: int, source: Callable[[int], Any], folder: Path, *identity: Any) -> list[Task]:
    return [
        Task(source(number).tables, [], folder / f"range-{number:05d}.arrow", digest([number, *identity]))
        for number in range(count)
    ]


def _outs(tasks: Sequence[Task]) -> list[Path]:
    return [task.out for task in tasks]


def _keys(tasks: Sequence[Task]) -> str:
    return digest([task.key for task in tasks])


def spans_pass(name: str, parts: list[Part], config: AnySpans, work: Path, do: Do) -> list[Part]:
    """Find the spans that stand twice, and cut them out of each part."""
    if not config.enabled:
        return parts
    work = work / name
    settings = config.model_dump()
    text = sum(part.bytes for part in parts)
    grams: list[Answers | None] = [None] * len(parts)
    if isinstance(config, DuplicateSubstrings):
        # A document has about one word to 6 bytes; of its grams about 4 in `length` are picked.
        per_byte = {"word": 6, "token": 4, "byte": 1}[config.unit]
        count = ranges(4 * text // (per_byte * config.length), spans.WINDOW_BYTES)
        picked = _map(parts, lambda part: GramKeys(part, config, count), work / "grams", settings, count, 1)
        do(name, picked)
        files = _outs(picked)
        twice = _reduce(count, lambda n: Repeats(files, n, count, 2, False), work / "twice", _keys(picked))
        do(name, twice)
        grams = [Answers(part.number, _outs(twice)) for part in parts]
        before = _keys(twice)
    else:
        count = ranges(text // SENTENCE_BYTES, spans.WINDOW_BYTES)
        before = ""
    keys = _map(
        parts, lambda part: WindowKeys(part, config, count, grams[part.number]), work / "keys", settings, count, before
    )
    do(name, keys)
    files, first = _outs(keys), config.keep == "first"
    found = _reduce(
        count, lambda n: Repeats(files, n, count, config.least, first), work / "found", _keys(keys), config.least, first
    )
    do(name, found)
    return [part.then(SpansStep(name, config, Answers(part.number, _outs(found)), _keys(found))) for part in parts]


def documents_pass(parts: list[Part], config: NearDuplicates, exact: bool, work: Path, do: Do) -> list[Part]:
    """Find exact and near copies among the documents that are still kept."""
    settings = config.model_dump()
    title = "comparing"
    indexing = _map(parts, lambda part: IndexTask(part, config), work / "index", settings, 1)
    do(title, indexing)
    indexes = _outs(indexing)
    starts = np.cumsum([0, *(part.rows for part in parts)])
    total = int(starts[-1])
    own = np.arange(total, dtype=np.int64)
    identity = _keys(indexing)
    if exact:
        count = ranges(total, documents.EXACT_BYTES)
        keys = _map(parts, lambda p: documents.ExactKeys(indexes[p.number], count), work / "exact", identity, count)
        do(title, keys)
        files = _outs(keys)
        groups = _reduce(count, lambda n: documents.ExactGroups(files, n, count), work / "groups", _keys(keys))
        do(title, groups)
        own = documents.exact_originals(_outs(groups), starts)
        identity = _keys(groups)
    exact_path = work / "exact.npy"
    _save(exact_path, own)
    near_path = exact_path
    if config.enabled:
        count = ranges(total * config.bands, documents.BANDS_BYTES)
        keys = _map(
            parts,
            lambda p: documents.BandKeys(indexes[p.number], int(starts[p.number]), exact_path, config, count),
            work / "bands", identity, settings, count,
        )  # fmt: skip
        do(title, keys)
        files = _outs(keys)
        pairs = _reduce(
            count, lambda n: documents.NearPairs(files, indexes, n, count, config), work / "pairs", _keys(keys)
        )
        do(title, pairs)
        near_path = work / "near.npy"
        _save(near_path, documents.near_originals(_outs(pairs), starts, own, indexes))
        identity = _keys(pairs)
    key = digest([identity, settings, exact])
    return [part.then(DuplicatesStep(part.number, starts, exact_path, near_path, indexes, key)) for part in parts]


def _save(path: Path, array: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
