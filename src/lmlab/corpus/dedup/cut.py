"""Cutting spans out of texts, with a record of what was cut: nothing vanishes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lmlab.corpus.arrow import buffers
from lmlab.corpus.steps.step import with_text

CUTS = "cuts"
CUT = pa.struct([("step", pa.string()), ("first", pa.int64()), ("text", pa.string())])
"""What a step cut out of a document: the first byte in the text as that step met it, and the text that went."""


def merge(firsts: np.ndarray, lasts: np.ndarray, documents: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Spans [first, last) that overlap or touch, joined: (firsts, lasts, documents), sorted. `documents` keeps the
    spans of different documents apart."""
    documents = np.zeros(len(firsts), np.int64) if documents is None else documents
    if not len(firsts):
        return firsts, lasts, documents
    order = np.lexsort((lasts, firsts, documents))
    firsts, lasts, documents = firsts[order], lasts[order], documents[order]
    # The furthest end so far within the document: shift each document beyond the one before it.
    shift = documents * (int(lasts.max()) + 1)
    furthest = np.maximum.accumulate(lasts + shift)
    new = np.ones(len(firsts), bool)
    new[1:] = (firsts + shift)[1:] > furthest[:-1]
    new[1:] |= documents[1:] != documents[:-1]
    end = np.append(np.flatnonzero(new)[1:] - 1, len(firsts) - 1)
    return firsts[new], (furthest - shift)[end], documents[new]


def cut(table: pa.Table, step: str, firsts: np.ndarray, lasts: np.ndarray, rows: np.ndarray) -> pa.Table:
    """Cut the byte spans [first, last) out of the texts of rows; what went is added to the column `cuts`.

    Spans may overlap. Bytes of a character that a span's edge falls into stay. A text that was cut loses empty lines at
    its ends.
    """
    firsts, lasts, rows = merge(firsts, lasts, rows)
    texts = table["text"].combine_chunks()
    texts = texts.chunk(0) if isinstance(texts, pa.ChunkedArray) and texts.num_chunks else texts
    data, offsets = buffers(texts)
    new = dict.fromkeys(np.unique(rows).tolist())
    gone: dict[int, list[dict[str, object]]] = {}
    for row in new:
        raw = data[offsets[row] : offsets[row + 1]].tobytes()
        here = slice(*np.searchsorted(rows, [row, row + 1]))
        kept, at = [], 0
        for first, last in zip(firsts[here].tolist(), lasts[here].tolist(), strict=True):
            a, b = _boundary(raw, first), _boundary(raw, last)
            kept.append(raw[at:a])
            gone.setdefault(row, []).append({"step": step, "first": a, "text": raw[a:b].decode("utf-8")})
            at = b
        new[row] = b"".join([*kept, raw[at:]]).decode("utf-8").strip("\n")
    written = texts.to_pylist()
    for row, text in new.items():
        written[row] = text
    before = table[CUTS].to_pylist() if CUTS in table.column_names else [[]] * len(table)
    column = pa.array([old + gone.get(i, []) for i, old in enumerate(before)], pa.list_(CUT))
    table = with_text(table, pa.array(written, pa.string()))
    if CUTS in table.column_names:
        return table.set_column(table.schema.get_field_index(CUTS), CUTS, column)
    return table.append_column(CUTS, column)


def _boundary(raw: bytes, at: int) -> int:
    """The first byte of a character at or after `at`."""
    while at < len(raw) and raw[at] & 0xC0 == 0x80:
        at += 1
    return at
