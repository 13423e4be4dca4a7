"""What a step is, and the columns that every document has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from lmlab.corpus.arrow import compute as pc

DOCUMENT = pa.schema(
    [
        ("id", pa.string()),  # source/relative-path#row
        ("source", pa.string()),
        ("path", pa.string()),  # relative to the source
        ("row", pa.int64()),  # which record of that file, from 0
        ("split", pa.string()),  # train | heldout
        ("kind", pa.string()),  # prose | code
        ("text", pa.string()),
        ("bytes_read", pa.int64()),  # of the text as it was read
        ("keep", pa.bool_()),
        ("step", pa.string()),  # which step dropped it, null if none did
        ("reason", pa.string()),
        ("meta", pa.string()),  # what the source says of it, as JSON (title, address, licence, score); null if nothing
    ]
)


class Step(Protocol):
    """A pure function on a table. It may add columns, change `text`, and drop rows by `drop`; never remove a row.

    `name` is what statistics call it. `identity` is all that its output depends on besides the table, as plain data:
    finished shards are kept only while it is the same.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> object: ...
    def __call__(self, table: pa.Table) -> pa.Table: ...


def drop(table: pa.Table, step: str, reasons: Sequence[str | None] | pa.Array) -> pa.Table:
    """Drop the rows that have a reason and are still kept; the first step that drops a document is the one named."""
    given = pa.array(reasons, type=pa.string()) if not isinstance(reasons, pa.Array) else reasons
    chosen = pc.and_(table["keep"], pc.is_valid(given))
    columns = {
        "keep": pc.and_(table["keep"], pc.invert(chosen)),
        "step": pc.if_else(chosen, pa.scalar(step), table["step"]),
        "reason": pc.if_else(chosen, given, table["reason"]),
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), DOCUMENT.field(name), values)
    return table


def with_text(table: pa.Table, text: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with another text column."""
    return table.set_column(table.schema.get_field_index("text"), DOCUMENT.field("text"), text.cast(pa.string()))
