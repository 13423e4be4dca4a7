"""Reading a finished corpus: `documents(stage_dir, split, source)` in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpus.arrow import compute as pc
from lmlab.errors import Refused

Split = Literal["train", "heldout"]


def parts(stage_dir: Path) -> list[Path]:
    """The Parquet files of a corpus stage, in order. Raises Refused where there are none."""
    found = sorted((Path(stage_dir) / "documents").glob("part-*.parquet"))
    if not found:
        raise Refused(f"{stage_dir}: is no finished corpus: it holds no documents/part-*.parquet")
    return found


def tables(stage_dir: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Every document, kept and dropped, a row group at a time."""
    for part in parts(stage_dir):
        with pq.ParquetFile(part) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=list(columns) if columns else None)


def documents(stage_dir: Path, split: Split = "train", source: str | None = None) -> Iterator[dict[str, Any]]:
    """The kept documents of a split (of one source): dicts with id, source, path and text, always in the same order:
    by source as the settings list them, file name and row. One row group is in memory at a time.
    """
    if split not in ("train", "heldout"):
        raise Refused(f"split '{split}': expected train or heldout")
    for table in tables(stage_dir, ["id", "source", "path", "text", "split", "keep"]):
        wanted = pc.and_(table["keep"], pc.equal(table["split"], split))
        if source is not None:
            wanted = pc.and_(wanted, pc.equal(table["source"], source))
        yield from table.filter(wanted).select(["id", "source", "path", "text"]).to_pylist()
